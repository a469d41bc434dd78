// The one pybind11 file: classes that hold no tensors, so no torch header is included.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "lattice/alpha_schedule.h"
#include "lattice/slot_table.h"
#include "lattice/stage.h"

namespace py = pybind11;
using namespace esper::lattice;

namespace {

Stage checked_stage(int position) {
  if (position < 0 || position >= static_cast<int>(kStageCount)) {
    throw py::value_error("SlotTable: got stage " + std::to_string(position) +
                          ", wanted a position in STAGES (0 to " + std::to_string(kStageCount - 1) +
                          ")");
  }
  return static_cast<Stage>(position);
}

py::tuple stages() {
  py::tuple names(kStageCount);
  for (std::size_t i = 0; i < kStageCount; ++i) {
    names[i] = py::str(kStageNames[i].data(), kStageNames[i].size());
  }
  return names;
}

py::tuple transitions() {
  py::tuple pairs(kTransitions.size());
  for (std::size_t i = 0; i < kTransitions.size(); ++i) {
    pairs[i] = py::make_tuple(static_cast<int>(kTransitions[i].first),
                              static_cast<int>(kTransitions[i].second));
  }
  return pairs;
}

}  // namespace

PYBIND11_MODULE(_lattice, m) {
  m.doc() = "Slot table and alpha schedules of a lattice.";
  py::register_exception<IllegalTransition>(m, "IllegalTransition", PyExc_ValueError);
  py::register_exception<UnknownSeed>(m, "UnknownSeed", PyExc_KeyError);
  m.attr("STAGES") = stages();
  m.attr("TRANSITIONS") = transitions();

  py::class_<AlphaSchedule>(m, "AlphaSchedule")
      .def(py::init<std::int64_t, std::optional<double>, std::optional<double>>(), py::arg("steps"),
           py::arg("midpoint") = py::none(), py::arg("temperature") = py::none())
      .def("value", &AlphaSchedule::value, py::arg("t"))
      .def_property_readonly("steps", &AlphaSchedule::steps)
      .def_property_readonly("midpoint", &AlphaSchedule::midpoint)
      .def_property_readonly("temperature", &AlphaSchedule::temperature);

  py::class_<SlotTable>(m, "SlotTable")
      .def(py::init<>())
      .def("add_seed", &SlotTable::add_seed, py::arg("seed"), py::arg("slot"))
      .def(
          "advance",
          [](SlotTable& self, std::int64_t seed, int stage) {
            self.advance(seed, checked_stage(stage));
          },
          py::arg("seed"), py::arg("stage"))
      .def("start_blend", &SlotTable::start_blend, py::arg("seed"), py::arg("schedule"))
      .def("tick", &SlotTable::tick)
      .def(
          "stage",
          [](const SlotTable& self, std::int64_t seed) {
            return static_cast<int>(self.stage(seed));
          },
          py::arg("seed"))
      .def("slot", &SlotTable::slot, py::arg("seed"))
      .def("alpha", &SlotTable::alpha, py::arg("seed"))
      .def("seeds", &SlotTable::seeds);
}
