#include "buffers.h"

/* A product of sides that no buffer reaches, so that no size below overflows. */
enum { MOST_SIDE = 1 << 28 };

int refused(const char *what) {
    PyErr_SetString(PyExc_ValueError, what);
    return 0;
}

int open_axes(PyObject *object, Py_buffer *view, int flags, int num_axes, const char *type, const char *what) {
    if (PyObject_GetBuffer(object, view, flags | PyBUF_FORMAT) != 0) {
        return 0;
    }
    int is_right = view->ndim == num_axes && view->format != NULL && strcmp(view->format, type) == 0;
    for (int axis = 0; is_right && axis < num_axes; axis++) {
        is_right = view->shape[axis] > 0 && view->shape[axis] < MOST_SIDE;
    }
    if (!is_right) {
        PyBuffer_Release(view);
        return refused(what);
    }
    return 1;
}

int open_image(PyObject *object, Py_buffer *view, image_t *image) {
    static const char what[] = "image must be uint8 (H, W, 3) whose rows are contiguous and follow each other";
    if (!open_axes(object, view, PyBUF_STRIDED_RO, 3, "B", what)) {
        return 0;
    }
    if (view->shape[2] != 3 || view->strides[2] != 1 || view->strides[1] != 3 ||
        (view->shape[0] > 1 && view->strides[0] < 3 * view->shape[1])) {
        PyBuffer_Release(view);
        return refused(what);
    }
    *image = (image_t){view->buf, view->strides[0], (int)view->shape[0], (int)view->shape[1]};
    return 1;
}

int open_targets(PyObject *object, Py_buffer *view, int num_axes, int is_float, int is_planar, target_t *target) {
    const char *what = is_float ? "out must be float32 (..., h, w, 3), planar (..., 3, h, w), C-contiguous and writable"
                                : "out must be uint8 (..., h, w, 3), C-contiguous and writable";
    if (!open_axes(object, view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE, num_axes, is_float ? "f" : "B", what)) {
        return 0;
    }
    const Py_ssize_t *shape = view->shape + num_axes - 3;
    if (shape[is_planar ? 0 : 2] != 3 || is_planar > is_float) {
        PyBuffer_Release(view);
        return refused(what);
    }
    target->values = view->buf;
    target->is_planar = is_planar;
    target->height = (int)shape[is_planar];
    target->width = (int)shape[is_planar + 1];
    return 1;
}

int open_table(PyObject *object, Py_buffer *view) {
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
        return 0;
    }
    if (view->format == NULL || strcmp(view->format, "f") != 0 || view->len != 256 * 3 * (Py_ssize_t)sizeof(float)) {
        PyBuffer_Release(view);
        return refused("table must be float32 of 256 x 3 values, C-contiguous");
    }
    return 1;
}
