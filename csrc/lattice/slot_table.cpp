#include "lattice/slot_table.h"

#include <algorithm>
#include <utility>

namespace esper::lattice {
namespace {

std::string quoted(Stage stage) {
  return "'" + std::string(name(stage)) + "'";
}

}  // namespace

void SlotTable::add_seed(std::int64_t seed, const std::string& slot) {
  const auto [place, fresh] = seeds_.try_emplace(seed, Seed{});
  if (!fresh) {
    throw std::invalid_argument("SlotTable: seed " + std::to_string(seed) +
                                " is already in slot '" + *place->second.slot +
                                "'; give each attempt an id of its own");
  }
  place->second.slot = &*slots_.insert(slot).first;
}

void SlotTable::advance(std::int64_t seed, Stage target) {
  Seed& entry = find(seed);
  if (!is_legal(entry.stage, target)) {
    throw IllegalTransition("SlotTable: seed " + std::to_string(seed) + " cannot go from " +
                            quoted(entry.stage) + " to " + quoted(target));
  }
  entry.stage = target;
  if (target == Stage::kCulled) {
    entry.blend.reset();
  }
}

void SlotTable::start_blend(std::int64_t seed, const AlphaSchedule& schedule) {
  Seed& entry = find(seed);
  if (entry.stage != Stage::kGrafting) {
    throw std::invalid_argument("SlotTable: seed " + std::to_string(seed) + " is " +
                                quoted(entry.stage) + ", a blend starts in " +
                                quoted(Stage::kGrafting));
  }
  if (entry.blend.has_value()) {
    throw std::invalid_argument("SlotTable: the blend of seed " + std::to_string(seed) +
                                " has already started");
  }
  entry.blend = Blend{schedule, now_};
}

Stage SlotTable::stage(std::int64_t seed) const {
  return find(seed).stage;
}

const std::string& SlotTable::slot(std::int64_t seed) const {
  return *find(seed).slot;
}

double SlotTable::alpha(std::int64_t seed) const {
  const Seed& entry = find(seed);
  return entry.blend.has_value() ? entry.blend->schedule.value(now_ - entry.blend->start) : 0.0;
}

std::vector<std::int64_t> SlotTable::seeds() const {
  std::vector<std::int64_t> ids;
  ids.reserve(seeds_.size());
  for (const auto& [id, entry] : seeds_) {
    ids.push_back(id);
  }
  std::ranges::sort(ids);
  return ids;
}

SlotTable::Seed& SlotTable::find(std::int64_t seed) {
  return const_cast<Seed&>(std::as_const(*this).find(seed));
}

const SlotTable::Seed& SlotTable::find(std::int64_t seed) const {
  const auto place = seeds_.find(seed);
  if (place == seeds_.end()) {
    throw UnknownSeed("SlotTable: no seed " + std::to_string(seed) + "; add_seed it first");
  }
  return place->second;
}

}  // namespace esper::lattice
