/* Python's buffers as the kernel's arguments. What opens one leaves its view to be released by the caller, or sets an
 * exception, gives 0 and leaves nothing. */
#ifndef HEADRACE_BUFFERS_H
#define HEADRACE_BUFFERS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernel.h"

/* Set a ValueError that says `what`; 0. */
int refused(const char *what);

/* So many axes, none empty, of `type`: "B" or "f". */
int open_axes(PyObject *object, Py_buffer *view, int flags, int num_axes, const char *type, const char *what);

/* RGB pixels, whose rows may have any distance. */
int open_image(PyObject *object, Py_buffer *view, image_t *image);

/* Room for one image of three axes, or for several of four: `target` is the first. Its table is the caller's to set. */
int open_targets(PyObject *object, Py_buffer *view, int num_axes, int is_float, int is_planar, target_t *target);

/* 256 levels of R, G and B. */
int open_table(PyObject *object, Py_buffer *view);

#endif
