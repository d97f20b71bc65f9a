/* The extension as Python sees it: buffers are looked at here, work is done with Python's lock released. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>

#include "kernel.h"

/* A product of sides that no buffer reaches, so that no size below overflows. */
enum { MOST_SIDE = 1 << 28 };

static int refused(const char *what) {
    PyErr_SetString(PyExc_ValueError, what);
    return 0;
}

/* Open `object` as three axes of `type`, "B" or "f"; 0 with an exception set. The caller releases `view`. */
static int open_axes(PyObject *object, Py_buffer *view, int flags, const char *type, const char *what) {
    if (PyObject_GetBuffer(object, view, flags | PyBUF_FORMAT) != 0) {
        return 0;
    }
    int is_right = view->ndim == 3 && view->format != NULL && strcmp(view->format, type) == 0;
    for (int axis = 0; is_right && axis < 3; axis++) {
        is_right = view->shape[axis] > 0 && view->shape[axis] < MOST_SIDE;
    }
    if (!is_right) {
        PyBuffer_Release(view);
        return refused(what);
    }
    return 1;
}

/* RGB pixels, whose rows may have any distance. */
static int open_image(PyObject *object, Py_buffer *view, image_t *image) {
    static const char what[] = "image must be uint8 (H, W, 3) whose rows are contiguous and follow each other";
    if (!open_axes(object, view, PyBUF_STRIDED_RO, "B", what)) {
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

static int open_target(PyObject *object, Py_buffer *view, int is_float, target_t *target) {
    const char *what = is_float ? "out must be float32 (h, w, 3) or (3, h, w), C-contiguous and writable, with a table"
                                : "out must be uint8 (h, w, 3), C-contiguous and writable, without a table";
    if (!open_axes(object, view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE, is_float ? "f" : "B", what)) {
        return 0;
    }
    const int is_planar = is_float && view->shape[2] != 3;
    if (view->shape[is_planar ? 0 : 2] != 3) {
        PyBuffer_Release(view);
        return refused(what);
    }
    target->values = view->buf;
    target->is_planar = is_planar;
    target->height = (int)view->shape[is_planar];
    target->width = (int)view->shape[is_planar + 1];
    return 1;
}

/* 256 levels of R, G and B. */
static int open_table(PyObject *object, Py_buffer *view) {
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
        return 0;
    }
    if (view->format == NULL || strcmp(view->format, "f") != 0 || view->len != 256 * 3 * (Py_ssize_t)sizeof(float)) {
        PyBuffer_Release(view);
        return refused("table must be float32 of 256 x 3 values, C-contiguous");
    }
    return 1;
}

/* Whether `box` has an inside and lies in `image`; its far edges may be beyond by what rounding makes of them. */
static int is_inside(box_t box, image_t image) {
    const double bottom = box.top + box.height, right = box.left + box.width, rounding = 1e-6;
    return box.top >= 0 && box.left >= 0 && box.height > 0 && box.width > 0 && bottom <= image.height + rounding &&
           right <= image.width + rounding;
}

PyDoc_STRVAR(resize_doc, "resize(image, top, left, height, width, is_mirrored, out, table, is_portable, /)\n--\n\n"
                         "Resize a box of `image` into `out` by a triangle filter.");

static PyObject *resize(PyObject *Py_UNUSED(module), PyObject *arguments) {
    PyObject *image_object, *out_object, *table_object;
    box_t box;
    int is_mirrored, is_portable;
    if (!PyArg_ParseTuple(arguments, "OddddpOOp", &image_object, &box.top, &box.left, &box.height, &box.width,
                          &is_mirrored, &out_object, &table_object, &is_portable)) {
        return NULL;
    }
    Py_buffer source = {0}, out = {0}, table = {0};
    image_t image;
    target_t target = {0};
    PyObject *result = NULL;
    if ((table_object == Py_None || open_table(table_object, &table)) && open_image(image_object, &source, &image) &&
        open_target(out_object, &out, table_object != Py_None, &target) &&
        (is_inside(box, image) || refused("the box must lie in the image and be larger than nothing"))) {
        int has_memory;
        target.table = table.buf;
        Py_BEGIN_ALLOW_THREADS;
        has_memory =
            resize_triangle(image, box, is_mirrored, target, is_portable ? &portable_passes : best_passes());
        Py_END_ALLOW_THREADS;
        result = has_memory ? Py_NewRef(Py_None) : PyErr_NoMemory();
    }
    PyBuffer_Release(&out);
    PyBuffer_Release(&source);
    PyBuffer_Release(&table);
    return result;
}

static int is_part(region_t part, image_t whole) {
    return part.top >= 0 && part.left >= 0 && part.height > 0 && part.width > 0 && part.height <= whole.height &&
           part.width <= whole.width && part.top <= whole.height - part.height &&
           part.left <= whole.width - part.width;
}

static decoder_t decoder; /* set when this is imported */

PyDoc_STRVAR(decode_doc, "decode_region(jpeg, denominator, top, left, height, width, frame, is_libjpegs=False, /)\n--\n\n"
                         "Decode a region of a JPEG into its place in `frame`; False where that is not to be had.");

static PyObject *decode(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Py_buffer jpeg = {0}, out = {0};
    PyObject *frame_object, *result = NULL;
    region_t needed;
    target_t frame = {0};
    int denominator, is_libjpegs = 0;
    if (!PyArg_ParseTuple(arguments, "y*iiiiiO|p", &jpeg, &denominator, &needed.top, &needed.left, &needed.height,
                          &needed.width, &frame_object, &is_libjpegs)) {
        return NULL;
    }
    if (open_target(frame_object, &out, 0, &frame)) {
        const image_t whole = {.height = frame.height, .width = frame.width};
        if (denominator != 1 && denominator != 2 && denominator != 4 && denominator != 8) {
            refused("denominator must be 1, 2, 4 or 8");
        } else if (!is_part(needed, whole)) {
            refused("the region must lie in the frame and be larger than nothing");
        } else {
            int is_done;
            Py_BEGIN_ALLOW_THREADS;
            is_done = decode_region(jpeg.buf, (size_t)jpeg.len, denominator, needed, frame.values, frame.height,
                                    frame.width, is_libjpegs ? LIBJPEGS : decoder);
            Py_END_ALLOW_THREADS;
            result = PyBool_FromLong(is_done);
        }
    }
    PyBuffer_Release(&out);
    PyBuffer_Release(&jpeg);
    return result;
}

/* Copy a float32 array of `num_values` into `values`; 0 with an exception set. */
static int read_floats(PyObject *object, float *values, Py_ssize_t num_values, const char *what) {
    Py_buffer view;
    if (PyObject_GetBuffer(object, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
        return 0;
    }
    const int is_right = view.format != NULL && strcmp(view.format, "f") == 0 &&
                         view.len == num_values * (Py_ssize_t)sizeof(float);
    if (is_right) {
        memcpy(values, view.buf, (size_t)view.len);
    }
    PyBuffer_Release(&view);
    return is_right || refused(what);
}

/* Pixels that follow each other without gaps, and as much room for their floats. The caller releases both views. */
typedef struct {
    Py_buffer source, out;
    const uint8_t *pixels;
    size_t num_pixels;
    floats_t floats;
} conversion_t;

static int open_conversion(PyObject *image_object, PyObject *out_object, int is_planar, conversion_t *made) {
    static const char what[] = "out must be float32 of the image's (H, W, 3), planar (3, H, W), C-contiguous and writable";
    image_t image;
    if (!open_image(image_object, &made->source, &image)) {
        return 0;
    }
    if (image.height > 1 && image.stride != 3 * (ptrdiff_t)image.width) {
        return refused("image must be C-contiguous");
    }
    if (!open_axes(out_object, &made->out, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE, "f", what)) {
        return 0;
    }
    const Py_ssize_t *shape = made->out.shape;
    if (shape[is_planar ? 0 : 2] != 3 || shape[is_planar] != image.height || shape[is_planar + 1] != image.width) {
        return refused(what);
    }
    made->pixels = image.pixels;
    made->num_pixels = (size_t)image.height * image.width;
    made->floats = is_planar ? (floats_t){made->out.buf, 1, made->num_pixels} : (floats_t){made->out.buf, 3, 1};
    return 1;
}

PyDoc_STRVAR(colour_doc, "colour(image, matrix, lower, upper, out, is_planar, is_portable, /)\n--\n\n"
                         "Pixels times `matrix` (3, 4), clamped by channel, into `out`.");

static PyObject *colour(PyObject *Py_UNUSED(module), PyObject *arguments) {
    PyObject *image, *matrix, *lower, *upper, *out, *result = NULL;
    int is_planar, is_portable;
    if (!PyArg_ParseTuple(arguments, "OOOOOpp", &image, &matrix, &lower, &upper, &out, &is_planar, &is_portable)) {
        return NULL;
    }
    conversion_t made = {0};
    colour_t wanted;
    if (read_floats(matrix, &wanted.matrix[0][0], 12, "matrix must be float32 (3, 4), C-contiguous") &&
        read_floats(lower, wanted.lower, 3, "lower must be float32 (3,), C-contiguous") &&
        read_floats(upper, wanted.upper, 3, "upper must be float32 (3,), C-contiguous") &&
        open_conversion(image, out, is_planar, &made)) {
        Py_BEGIN_ALLOW_THREADS;
        colour_pixels(made.pixels, made.num_pixels, &wanted, made.floats, is_portable);
        Py_END_ALLOW_THREADS;
        result = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&made.out);
    PyBuffer_Release(&made.source);
    return result;
}

PyDoc_STRVAR(look_up_doc, "look_up(image, table, out, is_planar, /)\n--\n\n"
                          "Each level of `image` by its entry of `table` (256, 3) into `out`.");

static PyObject *look_up(PyObject *Py_UNUSED(module), PyObject *arguments) {
    PyObject *image, *table_object, *out, *result = NULL;
    int is_planar;
    if (!PyArg_ParseTuple(arguments, "OOOp", &image, &table_object, &out, &is_planar)) {
        return NULL;
    }
    conversion_t made = {0};
    Py_buffer table = {0};
    if (open_table(table_object, &table) && open_conversion(image, out, is_planar, &made)) {
        Py_BEGIN_ALLOW_THREADS;
        look_up_pixels(made.pixels, made.num_pixels, table.buf, made.floats);
        Py_END_ALLOW_THREADS;
        result = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&made.out);
    PyBuffer_Release(&made.source);
    PyBuffer_Release(&table);
    return result;
}

static PyMethodDef methods[] = {
    {"colour", colour, METH_VARARGS, colour_doc},
    {"decode_region", decode, METH_VARARGS, decode_doc},
    {"look_up", look_up, METH_VARARGS, look_up_doc},
    {"resize", resize, METH_VARARGS, resize_doc},
    {NULL, NULL, 0, NULL},
};

enum { VERSION = 3 }; /* as in __init__.py: another one is not used */

static int on_import(PyObject *module) {
    decoder = best_decoder();
    return PyModule_AddIntConstant(module, "VERSION", VERSION) != 0 ||
                   PyModule_AddObjectRef(module, "replaces_libjpegs", decoder == OURS ? Py_True : Py_False) != 0
               ? -1
               : 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, on_import}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_kernel",
    .m_doc = "A part of a JPEG, antialiased resizing, and levels to floats.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&definition); }
