/* What the models of the protocol share: what a log is made of, and what no log may ever say.
 *
 * An entry is one byte: its kind, the decision that it is about, the term in which it was written
 * (the lease epoch, or the incarnation of the process) and who wrote it. Two entries are the same
 * bytes of a signed segment if and only if they are the same number.
 */

#define DECIDED 1
#define APPLIED 2
#define LAPSED 3
#define BEGUN 4 /* run.started, or a takeover; nothing else may begin a term */
#define CHECKPOINT 5
#define ENDED 6

#define ENTRY(kind, about, term, by) ((kind) | ((about) << 3) | ((term) << 4) | ((by) << 7))
#define KIND(entry) ((entry) & 7)
#define ABOUT(entry) (((entry) >> 3) & 1)
#define TERM(entry) (((entry) >> 4) & 7)
#define BY(entry) ((entry) >> 7)

#ifndef FAULTS
#define FAULTS 2
#endif
#ifndef DECISIONS
#define DECISIONS 2
#endif
#define BOTH ((1 << DECISIONS) - 1)
#define HAS(set, number) (((set) >> (number)) & 1)

/* Sets of decisions, as bits, that `audit` finds in a log. */
hidden byte told_decided, told_applied, told_settled, told_ended;
hidden byte place, entry, author;

/* Read the first `length` entries of log `which`; READ(which, place) is the including model's. A log
 * tells each decision once, and at most one outcome
 * of it, afterwards; terms do not fall and each has one writer; nothing follows the end of a run, at
 * which every decision has its outcome. */
inline audit(which, length) {
    told_decided = 0; told_applied = 0; told_settled = 0; told_ended = 0; entry = 0;
    place = 0;
    do
    :: place < (length) ->
        author = entry;
        entry = READ(which, place);
        assert(!told_ended);
        assert(TERM(entry) >= TERM(author));
        assert(TERM(entry) > TERM(author) || BY(entry) == BY(author));
        if
        :: KIND(entry) == DECIDED ->
            assert(!HAS(told_decided, ABOUT(entry)));
            told_decided = told_decided | (1 << ABOUT(entry))
        :: KIND(entry) == APPLIED || KIND(entry) == LAPSED ->
            assert(HAS(told_decided, ABOUT(entry)));
            assert(!HAS(told_settled, ABOUT(entry)));
            told_settled = told_settled | (1 << ABOUT(entry));
            if
            :: KIND(entry) == APPLIED -> told_applied = told_applied | (1 << ABOUT(entry))
            :: else
            fi
        :: KIND(entry) == ENDED ->
            assert(told_settled == told_decided);
            told_ended = 1
        :: else
        fi;
        place++
    :: else -> break
    od;
    place = 0; entry = 0; author = 0
}
