// How much of a seed the host hears, step by step, while it is grafted.
#pragma once

#include <cstdint>
#include <optional>

namespace esper::lattice {

// The normalised sigmoid
//   a(t) = (s((t - mid) / T) - s(-mid / T)) / (s((n - mid) / T) - s(-mid / T)),
// with s the logistic function, n the number of steps, mid the midpoint and T the temperature.
// It rises monotonically, is exactly 0 at t <= 0 and exactly 1 at t >= n.
class AlphaSchedule {
 public:
  // steps >= 1; midpoint (in steps) defaults to steps / 2, temperature (in steps) to steps / 8.
  // Throws std::invalid_argument where the curve would not rise.
  explicit AlphaSchedule(std::int64_t steps,
                         std::optional<double> midpoint = std::nullopt,
                         std::optional<double> temperature = std::nullopt);

  double value(std::int64_t t) const;

  std::int64_t steps() const { return steps_; }
  double midpoint() const { return midpoint_; }
  double temperature() const { return temperature_; }

 private:
  std::int64_t steps_;
  double midpoint_;
  double temperature_;
  double low_;
  double span_;
};

}  // namespace esper::lattice
