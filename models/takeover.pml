/* The log of one run with ack = "jetstream": the stream is the history, machines come and go.
 *
 * A machine's trainer decides, appends to its own journal, and applies what the stream has
 * acknowledged; its shipper publishes the journal's entries in order, one at a time, each with the
 * sequence that it expects to follow. An answer that does not come leaves the outcome unknown: the
 * message may be lost, stored, or still under way. A supervisor lets the lease expire whenever it
 * likes and gives the run, in a new epoch, to any machine: clocks are trusted for nothing.
 *
 * In code: publishing and resolving (`esper/log/jetstream.py`, `replica.py`, `fence.py`), deciding and
 * applying (`esper/tolaria/decisions.py`), `take_over`, `go_on` and `quarantine` (`esper/log/takeover.py`,
 * `quarantine.py`), the supervisor (`esper/tolaria/daemon/`). That the journal itself is durable is the
 * other model, `journal.pml`.
 *
 * Every fault is paid for from a budget, so every run of the model is finite (the check for cycles
 * shows it) and what must happen at last has happened in every state without a successor.
 */

#define MACHINES 2
#define STREAM MACHINES
#define READ(which, place) ((which) == STREAM -> stream[place] : machine[which].journal[place])
#define PLACES 9 /* a beginning for each epoch, two decisions with their outcomes, an end */

#ifndef EPOCHS
#define EPOCHS 3
#endif

#include "history.pml"

byte promised; /* how much of the stream any machine was told is there */

#define ARRIVED() audit(STREAM, stored)
#define FORGOTTEN() assert(stored >= promised)

#define DOWN 0     /* not running, or running without a lease that it knows of */
#define STARTING 1 /* its beginning, or what its journal has more than the stream, is not told yet */
#define LIVE 2     /* trains */
#define FENCED 3   /* has met an entry of somebody else where its own should be */

byte lease = 1, holder = 0;

/* One machine: its disk, and the memory of its process. */
typedef Machine {
    byte journal[PLACES]; /* on disk */
    byte written;
    byte term;            /* on disk, with the journal's last entry */
    byte phase;
    byte shipped;         /* entries that the stream is known to have */
    byte open, host, settled; /* decisions under way, in the host, with an outcome */
    byte decided;         /* how many */
    bool ended;
};
Machine machine[MACHINES];

#define M machine[me]

#include "server.pml"

inline append(what) {
    M.journal[M.written] = what;
    M.written++
}

/* Where the journal tells decision d. */
hidden byte where;
inline find(d) {
    where = 0;
    do
    :: where < M.written && !(KIND(M.journal[where]) == DECIDED && ABOUT(M.journal[where]) == d) ->
        where++
    :: else -> break
    od
}

/* The training state that a journal leads to: host and open decisions of a machine that has
 * trained again up to its head. */
inline replay() {
    audit(me, M.written);
    M.host = told_applied;
    M.settled = told_settled;
    M.open = told_decided & ~told_settled;
    M.decided = (told_decided & 1) + (told_decided >> 1);
    M.ended = told_ended
}

inline forget() {
    M.shipped = 0; M.open = 0; M.host = 0; M.settled = 0; M.decided = 0; M.ended = 0
}

/* What a journal without a lease holds beyond the stream is set aside for good, with the rest of its
 * memory: nothing reads it again. */
inline quarantine() {
    forget();
    place = 0;
    do
    :: place < PLACES -> M.journal[place] = 0; place++
    :: else -> break
    od;
    place = 0;
    M.written = 0
}

/* The stream's history takes the place of the journal's: what the journal has more, or else, is
 * set aside and was never acknowledged. */
inline adopt() {
    place = 0;
    do
    :: place < PLACES ->
        M.journal[place] = (place < stored -> stream[place] : 0);
        place++
    :: else -> break
    od;
    place = 0;
    M.written = stored; M.shipped = stored
}

/* Begin the epoch that one was given, behind all that the stream has. */
inline take_over() {
    forget();
    adopt();
    if
    :: stored && KIND(stream[stored - 1]) == ENDED -> M.phase = FENCED; quarantine()
    :: else -> M.phase = STARTING; append(ENTRY(BEGUN, 0, M.term, me))
    fi
}

/* Go on with one's own journal, under the lease that one has. */
inline go_on() {
    forget();
#ifdef EAGER_RESUME /* as if a journal were acknowledged because it is there */
    M.phase = LIVE;
    M.shipped = stored;
    replay();
#else
    M.phase = STARTING
#endif
}

inline acknowledged() {
    M.shipped++;
    answered();
    promised = (M.shipped > promised -> M.shipped : promised);
    assert(stored >= promised)
}

/* The place is taken, or the outcome of a publish is unknown: the stream's tail tells. */
inline resolve() {
    answered();
    if
    :: M.shipped >= stored -> /* not there, and perhaps under way: the same again is safe */
#ifdef UNKNOWN_IS_FAILURE
        M.written = M.shipped;
        M.journal[M.written] = 0;
        M.settled = M.settled | M.open;
        M.open = 0
#endif
#ifdef UNKNOWN_IS_SUCCESS
        acknowledged()
#endif
        skip
    :: M.shipped < stored && stream[M.shipped] == M.journal[M.shipped] -> acknowledged()
    :: else ->
#ifdef NO_FENCE /* as a writer of a shared log would: behind the tail, whoever wrote that */
        entry = M.journal[M.shipped];
        where = entry;
        adopt();
        append(where);
        where = 0
#else
        if
        :: M.phase == STARTING && TERM(stream[stored - 1]) < M.term &&
            TERM(M.journal[M.shipped]) == M.term &&
            KIND(M.journal[M.shipped]) == BEGUN ->
            take_over() /* a late entry of the epoch before came first: behind it, then */
        :: else -> M.phase = FENCED; quarantine()
        fi
#endif
    fi
}

proctype Daemon(byte me) {
    byte d;
end:
    do
    /* --- coming and going --- */
    :: atomic { M.phase == DOWN && holder == me && M.term == lease -> d_step { go_on() } }
    :: atomic { holder == me && M.term != lease && (M.phase == DOWN || M.phase == FENCED) ->
        d_step { M.term = lease; take_over() } }
    :: atomic { M.phase == STARTING && M.shipped == M.written && !W.waiting -> d_step {
        M.phase = LIVE; replay() } }
    :: atomic { faults && (M.phase == STARTING || M.phase == LIVE) && !(M.ended && M.shipped == M.written) ->
        d_step {
            faults--;
            M.phase = DOWN;
            leave();
            if
            :: M.term == lease && holder == me -> forget()
            :: else -> quarantine()
            fi
        } }

    /* --- the trainer --- */
    :: atomic { M.phase == LIVE && M.decided < DECISIONS && !M.ended -> d_step {
        M.open = M.open | (1 << M.decided);
        append(ENTRY(DECIDED, M.decided, M.term, me));
        M.decided++ } }
    :: atomic { M.phase == LIVE && M.open ->
        if
        :: HAS(M.open, 0) -> d = 0
        :: HAS(M.open, 1) -> d = 1
        fi;
        d_step { find(d) };
        if
#ifdef APPLY_BEFORE_ACKNOWLEDGEMENT
        :: true ->
#else
        :: where < M.shipped ->
#endif
            d_step {
                /* No unacknowledged change is applied, and none twice. */
                assert(where < stored && stream[where] == M.journal[where]);
                assert(!HAS(M.host, d));
                M.host = M.host | (1 << d);
                append(ENTRY(APPLIED, d, M.term, me))
            }
        :: d_step { append(ENTRY(LAPSED, d, M.term, me)) } /* overdue, or overtaken */
        fi;
        d_step {
        M.open = M.open & ~(1 << d);
        M.settled = M.settled | (1 << d);
        where = 0; d = 0 } }
    :: atomic { M.phase == LIVE && M.decided == DECISIONS && !M.open && !M.ended -> d_step {
        M.ended = 1;
        append(ENTRY(ENDED, 0, M.term, me)) } }

    /* --- the shipper --- */
    :: atomic { (M.phase == STARTING || M.phase == LIVE) && M.shipped < M.written && !W.waiting ->
        d_step {
            publish(M.journal[M.shipped], M.shipped)
        } }
    :: atomic { W.waiting && W.answer == STORED -> d_step { acknowledged() } }
    :: atomic { W.waiting && W.answer == CONFLICT -> d_step { resolve() } }
    :: atomic { W.waiting && faults -> /* no answer in time */
        faults--;
        if
        :: d_step { leave() }
        :: d_step { lose() }
        fi;
        d_step { resolve() } }
    od
}

proctype Supervisor() {
    byte me;
end:
    do
    :: atomic { lease < EPOCHS ->
        lease++;
        if
        :: holder = 0
        :: holder = 1
        fi;
        d_step {
            me = 0;
            do
            :: me < MACHINES ->
                if
                :: M.phase == DOWN -> quarantine()
                :: else
                fi;
                me++
            :: else -> break
            od;
            me = 0
        } }
    od
}

/* In a state without a successor the run has ended, and every decision was applied or has lapsed. */
proctype Last() {
end:
    atomic { timeout -> d_step { audit(STREAM, stored); assert(told_ended && told_settled == BOTH) } }
}

init {
    atomic { run Daemon(0); run Daemon(1); run Server(); run Supervisor(); run Last() }
}
