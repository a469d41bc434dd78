/* The server's stream and the way to it, for two clients that publish one message at a time.
 *
 * A publish names the sequence that it expects to follow. The client waits for its answer or gives
 * up; the message that it gave up may be lost, or late: then it arrives whenever it likes. A message
 * may arrive twice. The including model says what must hold when one is stored: ARRIVED(). */

#define CLIENTS 2

#define NO_ANSWER 0
#define STORED 1
#define CONFLICT 2

byte stream[PLACES];
byte stored;
byte faults = FAULTS;

typedef Wire {
    bool waiting;
    byte answer;
    byte sent, after;      /* the message whose answer is waited for; 0 when it has arrived */
    byte late, late_after; /* one under way for which nobody waits */
};
Wire wire[CLIENTS];

#define W wire[me]

inline publish(what, expected) {
    W.waiting = 1;
    W.sent = what;
    W.after = expected
}

inline answered() {
    W.waiting = 0;
    W.answer = NO_ANSWER
}

/* The client waits no longer; what is on the way may still arrive. */
inline leave() {
    if
    :: W.sent && !W.late -> W.late = W.sent; W.late_after = W.after
    :: else
    fi;
    W.sent = 0; W.after = 0;
    answered()
}

inline lose() {
    W.sent = 0; W.after = 0;
    answered()
}

inline receive(what, expected, result) {
    if
#ifdef NO_EXPECTED_SEQUENCE
    :: true ->
#else
    :: expected == stored ->
#endif
        stream[stored] = what;
        stored++;
        ARRIVED();
        result = STORED
    :: else -> result = CONFLICT
    fi
}

hidden byte unheard;

proctype Server() {
    byte me;
end:
    do
    :: atomic { wire[0].sent || wire[1].sent ->
        if
        :: wire[0].sent -> me = 0
        :: wire[1].sent -> me = 1
        fi;
        if
        :: faults && !W.late -> faults--; W.late = W.sent; W.late_after = W.after /* doubled */
        :: true
        fi;
        d_step { receive(W.sent, W.after, W.answer); W.sent = 0; W.after = 0; me = 0 } }
    :: atomic { wire[0].late || wire[1].late ->
        if
        :: wire[0].late -> me = 0
        :: wire[1].late -> me = 1
        fi;
        d_step {
            receive(W.late, W.late_after, unheard);
            W.late = 0; W.late_after = 0; unheard = 0; me = 0
        } }
#ifdef FORGETFUL
    :: atomic { faults && stored -> d_step {
        faults--; stored--; stream[stored] = 0; FORGOTTEN() } }
#endif
    od
}
