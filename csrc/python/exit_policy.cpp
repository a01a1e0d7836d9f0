// The threshold solver over NumPy arrays. anchornet_ext/policy/fitting.py checks what users pass;
// here is only what keeps the memory safe.
#include "python/exit_policy.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "exit_policy/fit.h"

namespace py = pybind11;
namespace ep = anchornet::exit_policy;

namespace {

using Doubles = py::array_t<double, py::array::c_style>;
using Bytes = py::array_t<uint8_t, py::array::c_style>;

// Lets Ctrl-C through, a few times a second: a search holds no lock of Python's.
class Interruptible {
 public:
  void operator()() {
    const auto now = std::chrono::steady_clock::now();
    if (now < next_) return;
    next_ = now + std::chrono::milliseconds(100);
    const py::gil_scoped_acquire lock;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }

 private:
  std::chrono::steady_clock::time_point next_{};
};

ep::Method method_named(const std::string& name) {
  if (name == "geometric") return ep::Method::kGeometric;
  if (name == "search") return ep::Method::kSearch;
  throw std::invalid_argument("method must be 'search' or 'geometric', got '" + name + "'");
}

class Solver {
 private:
  // Searches let other threads of Python run; a second one on this object has to wait.
  template <typename Function>
  auto without_lock(const Function& function) {
    const py::gil_scoped_release unlock;
    const std::lock_guard<std::mutex> one_at_a_time(busy_);
    return function();
  }

  // What is sorted, searched and clamped has to be in an order, which NaN is not.
  static void require_order(const Doubles& confidence, const Doubles& cost) {
    const auto is_nan = [](double value) { return std::isnan(value); };
    if (std::any_of(confidence.data(), confidence.data() + confidence.size(), is_nan)) {
      throw std::invalid_argument("confidence has NaN");
    }
    const double *const first = cost.data(), *const end = first + cost.size();
    if (!std::all_of(first, end, [](double value) { return std::isfinite(value); }) ||
        !std::is_sorted(first, end)) {
      throw std::invalid_argument("cost must be finite and not fall from exit to exit");
    }
  }

  // A policy within it exists: the one by which all images leave at once.
  void require_budget(double budget) const {
    if (!(budget >= table_->cost(0))) {
      throw std::invalid_argument("budget must be at least the cheapest exit's cost " +
                                  std::to_string(table_->cost(0)) + ", got " +
                                  std::to_string(budget));
    }
  }

 public:
  Solver(const Doubles& confidence, const Bytes& correct, const Doubles& cost,
         const std::string& method) {
    const ep::Method kind = method_named(method);
    if (confidence.ndim() != 2 || correct.ndim() != 2 || cost.ndim() != 1 ||
        confidence.shape(0) < 1 || confidence.shape(1) < 1 ||
        confidence.shape(0) > std::numeric_limits<int32_t>::max() - 1 ||
        correct.shape(0) != confidence.shape(0) || correct.shape(1) != confidence.shape(1) ||
        cost.shape(0) != confidence.shape(1)) {
      throw std::invalid_argument("expected confidence and correct (N, T) and cost (T)");
    }
    require_order(confidence, cost);
    const py::gil_scoped_release unlock;
    table_ = std::make_unique<ep::Table>(confidence.data(), correct.data(), cost.data(),
                                         confidence.shape(0), confidence.shape(1));
    fitter_ = std::make_unique<ep::Fitter>(*table_, kind, Interruptible());
  }

  py::tuple within(double budget) {
    require_budget(budget);
    return as_tuple(without_lock([&] { return fitter_->within(budget); }));
  }

  std::optional<py::tuple> reaching(int64_t correct) {
    const auto found = without_lock([&] { return fitter_->reaching(correct); });
    if (!found) return std::nullopt;
    return as_tuple(*found);
  }

  int64_t best_correct() {
    return without_lock([&] { return fitter_->best_correct(); });
  }

  double saturation() {
    return without_lock([&] { return fitter_->saturation(); });
  }

  py::list curve(const std::vector<double>& budgets) {
    for (const double budget : budgets) require_budget(budget);
    py::list result;
    for (const auto& point : without_lock([&] { return fitter_->curve(budgets); })) {
      result.append(as_tuple(point));
    }
    return result;
  }

  py::tuple evaluate(const std::vector<double>& thresholds) const {
    if (static_cast<int>(thresholds.size()) != table_->exits() - 1) {
      throw std::invalid_argument("expected one threshold for each exit but the last");
    }
    ep::Cuts cuts(thresholds.size());
    for (size_t t = 0; t < cuts.size(); ++t) {
      cuts[t] = table_->cut(static_cast<int>(t), thresholds[t]);
    }
    const ep::Score score = table_->evaluate(cuts);
    return py::make_tuple(score.correct, score.cost);
  }

 private:
  py::tuple as_tuple(const ep::Found& found) const {
    py::list thresholds;
    for (size_t t = 0; t < found.cuts.size(); ++t) {
      thresholds.append(table_->threshold(static_cast<int>(t), found.cuts[t]));
    }
    return py::make_tuple(thresholds, found.score.correct, found.score.cost);
  }

  std::mutex busy_;
  std::unique_ptr<ep::Table> table_;
  std::unique_ptr<ep::Fitter> fitter_;
};

}  // namespace

void bind_exit_policy(py::module_& module) {
  py::class_<Solver>(module, "ThresholdSolver",
                     "Thresholds for one table of exits. A policy is "
                     "(thresholds, right answers, mean cost).")
      .def(py::init<const Doubles&, const Bytes&, const Doubles&, const std::string&>(),
           py::arg("confidence").noconvert(), py::arg("correct").noconvert(),
           py::arg("cost").noconvert(), py::arg("method"))
      .def("within", &Solver::within, py::arg("budget"), "A policy of at most this mean cost.")
      .def("reaching", &Solver::reaching, py::arg("correct"),
           "A cheap policy with at least this many right answers, or None.")
      .def("best_correct", &Solver::best_correct,
           "The most right answers that the method reaches at any cost.")
      .def("saturation", &Solver::saturation,
           "The mean cost from which on more budget buys no accuracy.")
      .def("curve", &Solver::curve, py::arg("budgets"), "A policy for each ascending budget.")
      .def("evaluate", &Solver::evaluate, py::arg("thresholds"), "(right answers, mean cost).");
}
