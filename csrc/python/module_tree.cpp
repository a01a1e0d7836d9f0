// Whether the modules and tensors of a network are as they were, asked at every call of it. Between
// two calls megabytes of weights pass through the caches, so that each of the thousand objects that
// are looked at here has to come from memory: they are asked for some steps ahead, and nothing is
// written to them, not even a count of references.
// anchornet_ext/models/_structure.py says what the lists hold, keeps all of it alive, and never
// changes a list.
#include "python/module_tree.h"

namespace py = pybind11;

namespace {

constexpr Py_ssize_t kAhead = 12;

// Functions that only prefetch do nothing to GCC, which leaves them out unless they are inlined.
[[gnu::always_inline]] inline void prefetch(const void* from, Py_ssize_t bytes) {
  for (Py_ssize_t at = 0; at < bytes; at += 64) {
    __builtin_prefetch(static_cast<const char*>(from) + at);
  }
}

// The items of a list, while those after them are fetched.
class Items {
 public:
  explicit Items(const py::list& list) : list_(list.ptr()), size_(PyList_GET_SIZE(list_)) {}
  Py_ssize_t size() const { return size_; }
  [[gnu::always_inline]] PyObject* operator[](Py_ssize_t i) const {
    if (i + kAhead < size_) prefetch(PyList_GET_ITEM(list_, i + kAhead), 64);
    return PyList_GET_ITEM(list_, i);
  }

 private:
  PyObject* list_;
  Py_ssize_t size_;
};

void require_same_size(const py::list& a, const py::list& b) {
  if (a.size() != b.size()) throw py::value_error("lists of different lengths");
}

void require_dict(PyObject* object) {
  if (!PyDict_Check(object)) throw py::type_error("expected a dictionary");
}

// Of a dictionary that has come into the cache.
[[gnu::always_inline]] inline void prefetch_keys(PyObject* object) {
  if (PyDict_Check(object)) prefetch(reinterpret_cast<PyDictObject*>(object)->ma_keys, 128);
}

bool have_types(const py::list& objects, const py::list& types) {
  require_same_size(objects, types);
  const Items all(objects);
  for (Py_ssize_t i = 0; i < all.size(); ++i) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(all[i])) != PyList_GET_ITEM(types.ptr(), i)) {
      return false;
    }
  }
  return true;
}

bool are_empty(const py::list& dicts) {
  const Items all(dicts);
  for (Py_ssize_t i = 0; i < all.size(); ++i) {
    PyObject* const dict = all[i];
    require_dict(dict);
    if (PyDict_Size(dict) != 0) return false;
  }
  return true;
}

bool hold(const py::list& dicts, const py::list& items) {
  const Items all(dicts);
  const Py_ssize_t expected = PyList_GET_SIZE(items.ptr());
  Py_ssize_t count = 0;
  for (Py_ssize_t i = 0; i < all.size(); ++i) {
    PyObject* const dict = all[i];
    require_dict(dict);
    if (i + kAhead / 2 < all.size()) prefetch_keys(PyList_GET_ITEM(dicts.ptr(), i + kAhead / 2));
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(dict, &at, &key, &value); count += 2) {
      if (count + 2 > expected || PyList_GET_ITEM(items.ptr(), count) != key ||
          PyList_GET_ITEM(items.ptr(), count + 1) != value) {
        return false;
      }
    }
  }
  return count == expected;
}

// A name that Python finds attributes by the fastest; kept for ever.
PyObject* interned(const char* name) {
  PyObject* const string = PyUnicode_InternFromString(name);
  if (string == nullptr) throw py::error_already_set();
  return string;
}

bool has(PyObject* object, PyObject* attribute, PyObject* expected) {
  const auto value = py::reinterpret_steal<py::object>(PyObject_GetAttr(object, attribute));
  if (!value) throw py::error_already_set();
  if (value.ptr() == expected) return true;
  const int same = PyObject_RichCompareBool(value.ptr(), expected, Py_EQ);
  if (same < 0) throw py::error_already_set();
  return same != 0;
}

bool are_as_they_were(const py::list& tensors, const py::list& versions, const py::bytes& places,
                      const py::object& dtype) {
  require_same_size(tensors, versions);
  const auto* const place = reinterpret_cast<const void* const*>(PyBytes_AS_STRING(places.ptr()));
  if (PyBytes_GET_SIZE(places.ptr()) != static_cast<Py_ssize_t>(tensors.size() * sizeof(void*))) {
    throw py::value_error("places of another number of tensors");
  }
  static PyObject *const version_of = interned("_version"), *const dtype_of = interned("dtype"),
                         *const is_cpu = interned("is_cpu");
  const Items all(tensors);
  for (Py_ssize_t i = 0; i < all.size(); ++i) {
    if (i + kAhead < all.size()) prefetch(place[i + kAhead], 256);
    PyObject *const tensor = all[i], *const version = PyList_GET_ITEM(versions.ptr(), i);
    if (version != Py_None && !has(tensor, version_of, version)) return false;
    if (!dtype.is_none() && !(has(tensor, dtype_of, dtype.ptr()) && has(tensor, is_cpu, Py_True))) {
      return false;
    }
  }
  return true;
}

}  // namespace

void bind_module_tree(py::module_& module) {
  module.def("have_types", &have_types, py::arg("objects"), py::arg("types"),
             "Whether each object is of the type that is at its place.");
  module.def("are_empty", &are_empty, py::arg("dicts"), "Whether no dictionary holds anything.");
  module.def("hold", &hold, py::arg("dicts"), py::arg("items"),
             "Whether the dictionaries hold, one after the other, these very keys and values.");
  module.def("are_as_they_were", &are_as_they_were, py::arg("tensors"), py::arg("versions"),
             py::arg("places"), py::arg("dtype"),
             "Whether tensors have these versions (None: whatever it is) and, unless `dtype` is "
             "None, are of that type and on the CPU. `places`: their addresses, to be fetched.");
}
