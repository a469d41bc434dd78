// The stages of a seed and the only transitions between them.
//
// The order and the pairs repeat esper_events/stages.py, which is the one table of the project;
// a test compares the two over every pair of stages.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>
#include <utility>

namespace esper::lattice {

enum class Stage : int {
  kDormant,
  kGerminated,
  kTraining,
  kGrafting,
  kStabilizing,
  kEvaluating,
  kFossilized,
  kCulled,
  kEmbargoed,
};

inline constexpr std::size_t kStageCount = 9;

inline constexpr std::array<std::string_view, kStageCount> kStageNames = {
    "dormant",    "germinated", "training", "grafting",  "stabilizing",
    "evaluating", "fossilized", "culled",   "embargoed",
};

inline constexpr std::array<std::pair<Stage, Stage>, 13> kTransitions = {{
    {Stage::kDormant, Stage::kGerminated},
    {Stage::kGerminated, Stage::kTraining},
    {Stage::kTraining, Stage::kGrafting},
    {Stage::kGrafting, Stage::kStabilizing},
    {Stage::kStabilizing, Stage::kEvaluating},
    {Stage::kEvaluating, Stage::kFossilized},
    {Stage::kGerminated, Stage::kCulled},
    {Stage::kTraining, Stage::kCulled},
    {Stage::kGrafting, Stage::kCulled},
    {Stage::kStabilizing, Stage::kCulled},
    {Stage::kEvaluating, Stage::kCulled},
    {Stage::kCulled, Stage::kEmbargoed},
    {Stage::kEmbargoed, Stage::kDormant},
}};

constexpr bool is_legal(Stage source, Stage target) {
  for (const auto& [from, to] : kTransitions) {
    if (from == source && to == target) {
      return true;
    }
  }
  return false;
}

constexpr std::string_view name(Stage stage) {
  return kStageNames[static_cast<std::size_t>(stage)];
}

}  // namespace esper::lattice
