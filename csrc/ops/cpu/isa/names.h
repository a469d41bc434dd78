// Names that carry the instruction set, which ESPER_ISA gives.
#pragma once

#define ESPER_JOIN_(a, b) a##b
#define ESPER_JOIN(a, b) ESPER_JOIN_(a, b)
#define ESPER_TEXT_(a) #a
#define ESPER_TEXT(a) ESPER_TEXT_(a)
