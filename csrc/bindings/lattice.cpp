// The one pybind11 file: classes that hold no tensors, so no torch header is included.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "lattice/alpha_schedule.h"
#include "lattice/slot_table.h"
#include "lattice/stage.h"
#include "lattice/telemetry_ring.h"

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

// One record of a ring as contiguous doubles, given back when it goes. Nothing is allocated for it.
class RecordView {
 public:
  RecordView(const py::object& record, std::int64_t width) {
    if (PyObject_GetBuffer(record.ptr(), &view_, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
      throw py::error_already_set();
    }
    const std::string format = view_.format == nullptr ? "B" : view_.format;
    const auto wanted = static_cast<Py_ssize_t>(sizeof(double)) * width;
    if (format != "d" || view_.len != wanted) {
      const std::string got = std::to_string(view_.len) + " bytes of format '" + format + "'";
      PyBuffer_Release(&view_);
      throw py::value_error("TelemetryRing: got a record of " + got + ", wanted " +
                            std::to_string(width) + " figures in float64");
    }
  }
  ~RecordView() { PyBuffer_Release(&view_); }
  RecordView(const RecordView&) = delete;
  RecordView& operator=(const RecordView&) = delete;

  const double* data() const { return static_cast<const double*>(view_.buf); }

 private:
  Py_buffer view_;
};

py::bytes ring_records(const TelemetryRing& ring) {
  const std::int64_t bytes = ring.size() * ring.width() * static_cast<std::int64_t>(sizeof(double));
  auto out = py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, bytes));
  if (!out) {
    throw py::error_already_set();
  }
  ring.copy_to(reinterpret_cast<double*>(PyBytes_AS_STRING(out.ptr())));
  return out;
}

}  // namespace

PYBIND11_MODULE(_lattice, m) {
  m.doc() = "Slot table, alpha schedules and telemetry ring of a lattice.";
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

  py::class_<TelemetryRing>(m, "TelemetryRing")
      .def(py::init<std::int64_t, std::int64_t>(), py::arg("capacity"), py::arg("width"))
      .def(
          "push",
          [](TelemetryRing& self, std::int64_t step, const py::object& record) {
            self.push(step, RecordView(record, self.width()).data());
          },
          py::arg("step"), py::arg("record"))
      .def("steps", &TelemetryRing::steps)
      .def("records", &ring_records)
      .def("__len__", &TelemetryRing::size)
      .def_property_readonly("capacity", &TelemetryRing::capacity)
      .def_property_readonly("width", &TelemetryRing::width)
      .def_property_readonly("pushed", &TelemetryRing::pushed);
}
