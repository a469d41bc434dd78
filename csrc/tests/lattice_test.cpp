// Slot table, schedules and telemetry ring: random lives against a model, a million slots, and
// threads that share what is only read. `lattice_test SEEDS` prints what SEEDS seeds cost.
#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <random>
#include <thread>
#include <vector>

#include "lattice/slot_table.h"
#include "lattice/telemetry_ring.h"
#include "tests/check.h"

using namespace esper::lattice;

namespace {

constexpr Stage kToEvaluating[] = {Stage::kGerminated, Stage::kTraining, Stage::kGrafting,
                                   Stage::kStabilizing, Stage::kEvaluating};

void random_lives(unsigned random_seed) {
  struct Model {
    Stage stage = Stage::kDormant;
    std::int64_t blended_for = -1;  // Steps since the blend started; -1 without one.
  };
  std::mt19937 random(random_seed);
  const AlphaSchedule schedule(5);
  SlotTable table;
  std::map<std::int64_t, Model> models;
  for (int round = 0; round < 20000; ++round) {
    const std::int64_t seed = static_cast<std::int64_t>(random() % 50) - 25;
    const auto target = static_cast<Stage>(random() % kStageCount);
    if (random() % 10 == 0) {
      table.tick();
      for (auto& [id, model] : models) {
        model.blended_for += model.blended_for >= 0 ? 1 : 0;
      }
    }
    if (!models.contains(seed)) {
      CHECK_THROWS(table.stage(seed), UnknownSeed);
      table.add_seed(seed, "slot" + std::to_string(seed % 3));
      CHECK_THROWS(table.add_seed(seed, "other"), std::invalid_argument);
      models[seed] = {};
    }
    Model& model = models[seed];
    if (is_legal(model.stage, target)) {
      table.advance(seed, target);
      model.stage = target;
      model.blended_for = target == Stage::kCulled ? -1 : model.blended_for;
      if (target == Stage::kGrafting) {
        table.start_blend(seed, schedule);
        CHECK_THROWS(table.start_blend(seed, schedule), std::invalid_argument);
        model.blended_for = 0;
      }
    } else {
      CHECK_THROWS(table.advance(seed, target), IllegalTransition);
    }
    CHECK(table.stage(seed) == model.stage);
    CHECK(table.slot(seed) == "slot" + std::to_string(seed % 3));
    const double wanted = model.blended_for < 0 ? 0.0 : schedule.value(model.blended_for);
    CHECK(table.alpha(seed) == wanted);
  }
  std::vector<std::int64_t> ids;
  for (const auto& [id, model] : models) {
    ids.push_back(id);
  }
  CHECK(table.seeds() == ids);
}

void schedules() {
  for (std::int64_t steps = 1; steps < 300; ++steps) {
    const AlphaSchedule schedule(steps);
    double last = schedule.value(0);
    CHECK(last == 0.0 && schedule.value(steps) == 1.0);
    CHECK(schedule.value(INT64_MAX) == 1.0 && schedule.value(INT64_MIN) == 0.0);
    for (std::int64_t t = 1; t <= steps; ++t) {
      const double value = schedule.value(t);
      CHECK(value >= last && value <= 1.0);
      last = value;
    }
  }
  CHECK_THROWS(AlphaSchedule(0), std::invalid_argument);
  CHECK_THROWS(AlphaSchedule(10, std::nan("")), std::invalid_argument);
}

void ring() {
  TelemetryRing ring(3, 2);
  for (std::int64_t step = 0; step < 10; ++step) {
    const double record[] = {static_cast<double>(step), -1.0};
    ring.push(step, record);
    const std::int64_t kept = ring.size();
    CHECK(kept == std::min<std::int64_t>(step + 1, 3));
    std::vector<double> out(static_cast<std::size_t>(kept * 2));
    ring.copy_to(out.data());
    CHECK(out.front() == static_cast<double>(step + 1 - kept));
    CHECK(ring.steps().back() == step);
  }
}

// Tables share no hidden state, and what nobody writes may be read by many.
void threads() {
  SlotTable shared;
  for (std::int64_t seed = 0; seed < 1000; ++seed) {
    shared.add_seed(seed, "slot");
  }
  std::vector<std::thread> workers;
  for (unsigned worker = 0; worker < 4; ++worker) {
    workers.emplace_back([&shared, worker] {
      random_lives(worker);
      for (std::int64_t seed = 0; seed < 1000; ++seed) {
        CHECK(shared.stage(seed) == Stage::kDormant && shared.alpha(seed) == 0.0);
      }
    });
  }
  for (std::thread& worker : workers) {
    worker.join();
  }
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

long resident_kib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

// Every seed of a lattice of this size lives to EVALUATING; a thousand slots hold them.
void measure(std::int64_t seeds) {
  const long before = resident_kib();
  SlotTable table;
  double start = now();
  for (std::int64_t seed = 0; seed < seeds; ++seed) {
    table.add_seed(seed, "encoder.layers." + std::to_string(seed % 1000) + ".feed_forward");
  }
  const double count = static_cast<double>(seeds);
  std::printf("%lld seeds\n", static_cast<long long>(seeds));
  std::printf("  add_seed    %8.1f ns\n", (now() - start) / count * 1e9);
  const AlphaSchedule schedule(100);
  start = now();
  for (const Stage stage : kToEvaluating) {
    for (std::int64_t seed = 0; seed < seeds; ++seed) {
      table.advance(seed, stage);
    }
    if (stage == Stage::kGrafting) {
      for (std::int64_t seed = 0; seed < seeds; ++seed) {
        table.start_blend(seed, schedule);
      }
    }
  }
  std::printf("  transition  %8.1f ns\n", (now() - start) / count / 6.0 * 1e9);
  start = now();
  double sum = 0.0;
  for (int step = 0; step < 3; ++step) {
    table.tick();
    for (std::int64_t seed = 0; seed < seeds; ++seed) {
      sum += table.alpha(seed);
    }
  }
  std::printf("  one step of all schedules, every alpha read  %8.2f ms\n",
              (now() - start) / 3.0 * 1e3);
  std::printf("  memory      %8.1f bytes a seed\n",
              static_cast<double>(resident_kib() - before) * 1024.0 / count);
  CHECK(sum > 0.0);
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 2) {
    measure(std::atoll(arguments[1]));
    return 0;
  }
  random_lives(7);
  schedules();
  ring();
  threads();
  std::puts("lattice: all tests passed");
}
