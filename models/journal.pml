/* The log of one run with ack = "journal": one machine, one journal, a copy on a server.
 *
 * Two processes on one machine want to write the run; a lock lets one. Its trainer decides and hands
 * entries over, its appender writes them (first in part, then whole, into the page cache), syncs, and
 * acknowledges; its replica ships what is synced. The process may be killed between any two steps: what
 * it wrote stays in the page cache. The machine may lose its power: what was not synced stays only
 * as far as it happened to reach the disk. A sync may fail, the server may be given a store from
 * its past, and messages fare as `server.pml` says.
 *
 * In code: `esper/log/{journal,writer,event_log,replica,run}.py`, `esper/tolaria/{decisions,catch_up}.py`
 * and `esper/tolaria/checkpoint`. All of it is built. An entry stands for a segment.
 */

#define WRITERS 2
#define JOURNAL 0
#define STREAM 1
#define READ(which, place) ((which) == JOURNAL -> journal[place] : stream[place])
#define PLACES 8
#define NOBODY WRITERS

#include "history.pml"

#define DOWN 0
#define OPEN 1

#define IDLE 0
#define PARTIAL 1 /* a frame is half written */
#define WHOLE 2   /* a frame is written, and not synced */

/* The disk. */
byte journal[PLACES];
byte written;  /* whole entries in the file, as the page cache has it */
byte synced;   /* those that survive a loss of power */
byte promised; /* those of which any process was told that they do */
bool torn;     /* half a frame stands behind them */
bool saved;    /* there is a checkpoint's file: the host's state, durable, and who took it */
byte saved_host, saved_term;

byte lock = NOBODY;
byte terms; /* openings of the journal so far; no two write the same bytes */

typedef Process {
    byte phase, term;
    byte queue[4]; /* handed over, not written */
    byte queued, stage;
    byte end;      /* entries that it wrote and synced, or found */
    byte open, host, settled, decided; /* as in takeover.pml */
    bool ended, connected;
    byte shipped;
};
Process process[WRITERS];

#define P process[me]

#ifdef NO_LOCK
#define UNLOCKED true
#else
#define UNLOCKED (lock == NOBODY)
#endif
#ifdef SHIP_BEFORE_SYNC
#define SHIPPABLE written
#else
#define SHIPPABLE P.end
#endif

/* The copy is never ahead of what is durable here, nor anything else. */
#define ARRIVED() assert(stored <= synced && stream[stored - 1] == journal[stored - 1])
/* A server is given an older store while it is down, so its clients have to connect again. */
#define FORGOTTEN() me = 0; leave(); P.connected = 0; me = 1; leave(); P.connected = 0; me = 0

#define FORGETFUL
#include "server.pml"

inline hand_over(what) {
    P.queue[P.queued] = what;
    P.queued++
}

inline taken() {
    P.queue[0] = P.queue[1]; P.queue[1] = P.queue[2]; P.queue[2] = P.queue[3]; P.queue[3] = 0;
    P.queued--;
    P.stage = IDLE
}

inline acknowledge() {
    P.end++;
    promised = (P.end > promised -> P.end : promised);
    taken()
}

inline go_down() {
    P.phase = DOWN; P.term = 0;
    P.queue[0] = 0; P.queue[1] = 0; P.queue[2] = 0; P.queue[3] = 0; P.queued = 0;
    P.stage = IDLE; P.end = 0;
    P.open = 0; P.host = 0; P.settled = 0; P.decided = 0; P.ended = 0;
    P.connected = 0; P.shipped = 0;
    leave();
    if
    :: lock == me -> lock = NOBODY
    :: else
    fi
}

/* Forget what the file holds from place `written` on. */
inline cut() {
    place = written;
    do
    :: place < PLACES -> journal[place] = 0; place++
    :: else -> break
    od;
    place = 0;
    torn = 0
}

hidden byte where;
inline find(kind, about) {
    where = 0;
    do
    :: where < P.end && !(KIND(journal[where]) == kind && ABOUT(journal[where]) == about) -> where++
    :: else -> break
    od
}

/* The newest checkpoint that the log names, then the records behind it; or all of them. What a
 * checkpoint's host has, the log in front of it tells. */
inline replay() {
    audit(JOURNAL, P.end);
    P.settled = told_settled;
    P.open = told_decided & ~told_settled;
    P.decided = (told_decided & 1) + (told_decided >> 1);
    P.ended = told_ended;
    P.host = told_applied;
    find(CHECKPOINT, 0);
    if
#ifdef CHECKPOINT_WITHOUT_LOG /* the newest file that is there */
    :: saved ->
#else
    :: saved && where < P.end && TERM(journal[where]) == saved_term ->
        assert((saved_host & told_applied) == saved_host);
#endif
        P.host = saved_host | told_applied
    :: else
    fi;
    where = 0
}

proctype Run(byte me) {
    byte d;
end:
    do
    /* --- coming and going --- */
    :: atomic { P.phase == DOWN && UNLOCKED -> d_step {
            lock = me;
            cut(); /* a torn tail is set aside */
#ifndef TRUST_THE_PAGE_CACHE
            synced = written;
#endif
            terms++;
            P.term = terms;
            P.phase = OPEN;
            P.end = written;
            promised = (P.end > promised -> P.end : promised);
            replay();
            if
            :: P.end == 0 -> hand_over(ENTRY(BEGUN, 0, P.term, me))
            :: else
            fi
        } }
    :: atomic { faults && P.phase == OPEN -> d_step { faults--; go_down() } }

    /* --- the trainer --- */
    :: atomic { P.phase == OPEN && P.decided < DECISIONS && !P.ended && P.queued < 3 -> d_step {
        P.open = P.open | (1 << P.decided);
        hand_over(ENTRY(DECIDED, P.decided, P.term, me));
        P.decided++ } }
    :: atomic { P.phase == OPEN && P.open && P.queued < 3 ->
        if
        :: HAS(P.open, 0) -> d = 0
        :: HAS(P.open, 1) -> d = 1
        fi;
        d_step { find(DECIDED, d) };
        if
#ifdef APPLY_BEFORE_ACKNOWLEDGEMENT
        :: true ->
#else
        :: where < P.end ->
#endif
            d_step {
                /* No unacknowledged change is applied, and none twice. */
                assert(where < synced && KIND(journal[where]) == DECIDED);
                assert(!HAS(P.host, d));
                P.host = P.host | (1 << d);
                hand_over(ENTRY(APPLIED, d, P.term, me))
            }
        :: d_step { hand_over(ENTRY(LAPSED, d, P.term, me)) } /* overdue, or overtaken */
        fi;
        d_step {
            P.open = P.open & ~(1 << d);
            P.settled = P.settled | (1 << d);
            where = 0; d = 0
        } }
    :: atomic { P.phase == OPEN && !P.open && P.host && !P.ended && !saved && P.queued < 3 -> d_step {
        saved = 1; saved_host = P.host; saved_term = P.term;
        hand_over(ENTRY(CHECKPOINT, 0, P.term, me)) } }
    :: atomic { P.phase == OPEN && P.decided == DECISIONS && !P.open && !P.ended && P.queued < 3 ->
        d_step {
            P.ended = 1;
            hand_over(ENTRY(ENDED, 0, P.term, me))
        } }

    /* --- the appender --- */
    :: atomic { P.queued && P.stage == IDLE -> d_step { P.stage = PARTIAL; torn = 1 } }
    :: atomic { P.stage == PARTIAL -> d_step {
        P.stage = WHOLE;
        torn = 0;
        assert(P.end >= promised); /* what was acknowledged is not written over */
        journal[P.end] = P.queue[0];
        written = (P.end == written -> written + 1 : written) } }
    :: atomic { P.stage == WHOLE -> d_step {
#ifndef ACKNOWLEDGE_BEFORE_SYNC
        synced = written;
#endif
        acknowledge() } }
    :: atomic { P.stage == WHOLE && faults -> d_step { /* the sync fails, and the pages are dropped */
        faults--;
#ifdef SYNC_AGAIN /* the next one succeeds, for it has nothing to do */
        acknowledge()
#else
        written = P.end;
        cut();
        go_down()
#endif
        } }

    /* --- the replica --- */
    :: atomic { P.phase == OPEN && !P.connected -> d_step {
        /* What it holds is ours: the copy is not ahead, and ends as the journal does there. */
        assert(stored <= P.end && (!stored || stream[stored - 1] == journal[stored - 1]));
        P.connected = 1;
        P.shipped = stored } }
    :: atomic { P.connected && !W.waiting && P.shipped < SHIPPABLE -> d_step {
        publish(journal[P.shipped], P.shipped) } }
    :: atomic { W.waiting && W.answer == STORED -> d_step { P.shipped++; answered() } }
    :: atomic { W.waiting && W.answer == CONFLICT -> d_step { P.connected = 0; answered() } }
    :: atomic { W.waiting && faults -> /* no answer in time: what is there is seen at the next connection */
        faults--;
        if
        :: d_step { leave() }
        :: d_step { lose() }
        fi;
        P.connected = 0 }
    od
}

proctype Power() {
    byte me;
end:
    do
    :: atomic { faults ->
        faults--;
        do
        :: written > synced -> written--
        :: break
        od;
        if
        :: torn = 0
        :: torn = 1
        fi;
        d_step {
            me = torn; cut(); torn = me; /* a tail stays torn or goes */
            assert(written >= promised); /* no acknowledged change is lost */
            me = 0; go_down(); me = 1; go_down(); me = 0
        } }
    od
}

/* In a state without a successor the run has ended, every decision was applied or has lapsed, and the
 * copy is the journal. */
proctype Last() {
end:
    atomic { timeout -> d_step {
        audit(JOURNAL, written);
        assert(told_ended && told_settled == BOTH);
        assert(synced == written && stored == written) } }
}

init {
    atomic { run Run(0); run Run(1); run Power(); run Server(); run Last() }
}
