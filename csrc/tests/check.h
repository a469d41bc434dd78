// The few words that the C++ tests need.
#pragma once

#include <cstdlib>
#include <iostream>

// Ends the program where the condition does not hold, with its text and place.
#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::cerr << __FILE__ << ":" << __LINE__ << ": not so: " #condition << "\n"; \
      std::exit(1);                                                                \
    }                                                                              \
  } while (false)

// Ends the program where the expression does not throw an `exception`.
#define CHECK_THROWS(expression, exception) \
  do {                                      \
    bool thrown = false;                    \
    try {                                   \
      expression;                           \
    } catch (const exception&) {            \
      thrown = true;                        \
    }                                       \
    CHECK(thrown);                          \
  } while (false)
