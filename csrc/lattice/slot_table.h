// Which seeds live in which slot, at which stage, and how far each one is blended in.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "lattice/alpha_schedule.h"
#include "lattice/stage.h"

namespace esper::lattice {

// A step that the stage table does not hold; the message names both stages.
class IllegalTransition : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// A seed id that the table has not been given.
class UnknownSeed : public std::out_of_range {
 public:
  using std::out_of_range::out_of_range;
};

// Made for a million seeds: everything that is done to one seed, and a step of all blends, takes
// the same time however many there are.
//
// Invariants: a seed never changes its slot; its stage moves only along kTransitions; it is
// blended (0 < alpha) only in GRAFTING and the stages after it, and alpha never falls while it
// lives there. Several seeds may share a slot.
class SlotTable {
 public:
  SlotTable() = default;
  SlotTable(const SlotTable&) = delete;
  SlotTable& operator=(const SlotTable&) = delete;

  // Enters a seed as DORMANT. Throws std::invalid_argument where the id is taken.
  void add_seed(std::int64_t seed, const std::string& slot);

  // Moves a seed along one legal transition. Leaving for CULLED ends its blend.
  void advance(std::int64_t seed, Stage target);

  // Starts the blend of a seed in GRAFTING at alpha 0; every tick() is one step of it.
  void start_blend(std::int64_t seed, const AlphaSchedule& schedule);

  // One step of every blend that has been started and not ended.
  void tick() { ++now_; }

  Stage stage(std::int64_t seed) const;
  const std::string& slot(std::int64_t seed) const;
  double alpha(std::int64_t seed) const;
  std::vector<std::int64_t> seeds() const;  // ascending

 private:
  // Blends keep the time at which they started: a step of all of them moves one clock.
  struct Blend {
    AlphaSchedule schedule;
    std::int64_t start = 0;
  };
  struct Seed {
    const std::string* slot = nullptr;
    Stage stage = Stage::kDormant;
    std::optional<Blend> blend;
  };

  Seed& find(std::int64_t seed);
  const Seed& find(std::int64_t seed) const;

  std::int64_t now_ = 0;
  std::unordered_map<std::int64_t, Seed> seeds_;
  std::unordered_set<std::string> slots_;  // Its elements never move.
};

}  // namespace esper::lattice
