#include "lattice/alpha_schedule.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace esper::lattice {
namespace {

double logistic(double x) {
  // Two branches keep exp from overflowing on either side.
  if (x >= 0.0) {
    return 1.0 / (1.0 + std::exp(-x));
  }
  const double e = std::exp(x);
  return e / (1.0 + e);
}

void require(bool holds, const std::string& message) {
  if (!holds) {
    throw std::invalid_argument("AlphaSchedule: " + message);
  }
}

}  // namespace

AlphaSchedule::AlphaSchedule(std::int64_t steps,
                             std::optional<double> midpoint,
                             std::optional<double> temperature)
    : steps_(steps),
      midpoint_(midpoint.value_or(static_cast<double>(steps) / 2.0)),
      temperature_(temperature.value_or(static_cast<double>(steps) / 8.0)) {
  require(steps_ >= 1, "got steps=" + std::to_string(steps_) + ", wanted at least 1");
  require(std::isfinite(midpoint_),
          "got midpoint=" + std::to_string(midpoint_) + ", wanted a finite number of steps");
  require(std::isfinite(temperature_) && temperature_ > 0.0,
          "got temperature=" + std::to_string(temperature_) +
              ", wanted a positive finite number of steps");
  low_ = logistic(-midpoint_ / temperature_);
  span_ = logistic((static_cast<double>(steps_) - midpoint_) / temperature_) - low_;
  require(span_ > 0.0,
          "got midpoint=" + std::to_string(midpoint_) +
              " and temperature=" + std::to_string(temperature_) +
              ", with which the curve never rises; move the midpoint into 0..steps or raise the "
              "temperature");
}

double AlphaSchedule::value(std::int64_t t) const {
  if (t <= 0) {
    return 0.0;
  }
  if (t >= steps_) {
    return 1.0;
  }
  const double raw = logistic((static_cast<double>(t) - midpoint_) / temperature_);
  return std::clamp((raw - low_) / span_, 0.0, 1.0);
}

}  // namespace esper::lattice
