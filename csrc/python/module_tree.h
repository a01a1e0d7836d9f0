#pragma once

#include <pybind11/pybind11.h>

void bind_module_tree(pybind11::module_& module);
