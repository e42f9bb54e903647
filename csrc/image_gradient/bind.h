#pragma once

#include <pybind11/pybind11.h>

void bind_image_gradient(pybind11::module_& m);
