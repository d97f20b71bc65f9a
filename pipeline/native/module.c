/* The extension as Python sees it: buffers are looked at here, work is done with Python's lock released. */
#include "buffers.h"

/* Whether `box` has an inside and lies in `image`; its far edges may be beyond by what rounding makes of them. */
static int is_inside(box_t box, image_t image) {
    const double bottom = box.top + box.height, right = box.left + box.width, rounding = 1e-6;
    return box.top >= 0 && box.left >= 0 && box.height > 0 && box.width > 0 && bottom <= image.height + rounding &&
           right <= image.width + rounding;
}

PyDoc_STRVAR(resize_doc, "resize(image, top, left, height, width, is_mirrored, out, table, is_planar, is_portable, /)\n--\n\n"
                         "Resize a box of `image` into `out` by a triangle filter.");

static PyObject *resize(PyObject *Py_UNUSED(module), PyObject *arguments) {
    PyObject *image_object, *out_object, *table_object;
    box_t box;
    int is_mirrored, is_planar, is_portable;
    if (!PyArg_ParseTuple(arguments, "OddddpOOpp", &image_object, &box.top, &box.left, &box.height, &box.width,
                          &is_mirrored, &out_object, &table_object, &is_planar, &is_portable)) {
        return NULL;
    }
    Py_buffer source = {0}, out = {0}, table = {0};
    image_t image;
    target_t target = {0};
    PyObject *result = NULL;
    if ((table_object == Py_None || open_table(table_object, &table)) && open_image(image_object, &source, &image) &&
        open_targets(out_object, &out, 3, table_object != Py_None, is_planar, &target) &&
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

/* A crop, and the row it is to fill. */
typedef struct {
    crop_t crop;
    Py_ssize_t row;
} wanted_t;

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
    if (open_targets(frame_object, &out, 3, 0, 0, &frame)) {
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

/* The crop that a tuple tells, and its row of `num_rows`; 0 with an exception set. The tuple keeps its JPEG. */
static int read_crop(PyObject *object, Py_ssize_t num_rows, Py_ssize_t num_frame_bytes, wanted_t *wanted) {
    PyObject *jpeg;
    crop_t *crop = &wanted->crop;
    box_t *box = &crop->box;
    if (!PyTuple_Check(object)) {
        return refused("crops must be tuples");
    }
    if (!PyArg_ParseTuple(object, "nSiiiddddp", &wanted->row, &jpeg, &crop->denominator, &crop->height, &crop->width,
                          &box->top, &box->left, &box->height, &box->width, &crop->is_mirrored)) {
        return 0;
    }
    crop->jpeg = (const uint8_t *)PyBytes_AS_STRING(jpeg);
    crop->num_bytes = (size_t)PyBytes_GET_SIZE(jpeg);
    const int height = crop->height, width = crop->width, denominator = crop->denominator;
    if (denominator != 1 && denominator != 2 && denominator != 4 && denominator != 8) {
        return refused("denominator must be 1, 2, 4 or 8");
    }
    if (height <= 0 || width <= 0 || height > num_frame_bytes / 3 / width) {
        return refused("the frame has no room for the whole image");
    }
    return (is_inside(*box, (image_t){.height = height, .width = width}) ||
            refused("the box must lie in the image and be larger than nothing")) &&
           ((wanted->row >= 0 && wanted->row < num_rows) || refused("there is no such row"));
}

/* `made` tells of each whether its row was made. */
static double make_crops(const wanted_t *wanted, Py_ssize_t num_crops, uint8_t *frame, target_t first,
                         size_t row_bytes, tools_t tools, char *made) {
    double decode_s = 0;
    for (Py_ssize_t i = 0; i < num_crops; i++) {
        target_t target = first;
        target.values = (char *)first.values + (size_t)wanted[i].row * row_bytes;
        made[i] = (char)make_crop(&wanted[i].crop, frame, target, tools, &decode_s);
    }
    return decode_s;
}

PyDoc_STRVAR(crops_doc, "crops(crops, frame, out, table, is_planar, /)\n--\n\n"
                        "Make the rows of `out` that crops tell: (row, jpeg, denominator, height, width, box, is_mirrored).");

static PyObject *crops(PyObject *Py_UNUSED(module), PyObject *arguments) {
    PyObject *crops_object, *frame_object, *out_object, *table_object, *result = NULL;
    int is_planar;
    if (!PyArg_ParseTuple(arguments, "O!OOOp", &PyTuple_Type, &crops_object, &frame_object, &out_object, &table_object,
                          &is_planar)) {
        return NULL;
    }
    const Py_ssize_t num_crops = PyTuple_GET_SIZE(crops_object);
    Py_buffer frame = {0}, out = {0}, table = {0};
    target_t target = {0};
    wanted_t *wanted = PyMem_New(wanted_t, num_crops);
    PyObject *made = PyBytes_FromStringAndSize(NULL, num_crops);
    int is_right = wanted != NULL && made != NULL && (table_object == Py_None || open_table(table_object, &table)) &&
                   open_targets(out_object, &out, 4, table_object != Py_None, is_planar, &target) &&
                   PyObject_GetBuffer(frame_object, &frame, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE) == 0;
    for (Py_ssize_t i = 0; is_right && i < num_crops; i++) {
        is_right = read_crop(PyTuple_GET_ITEM(crops_object, i), out.shape[0], frame.len, &wanted[i]);
    }
    if (is_right) {
        const tools_t tools = {decoder, best_passes()};
        double decode_s;
        target.table = table.buf;
        Py_BEGIN_ALLOW_THREADS;
        decode_s = make_crops(wanted, num_crops, frame.buf, target, (size_t)(out.len / out.shape[0]), tools,
                              PyBytes_AS_STRING(made));
        Py_END_ALLOW_THREADS;
        result = Py_BuildValue("Od", made, decode_s);
    }
    Py_XDECREF(made);
    PyMem_Free(wanted);
    PyBuffer_Release(&table);
    PyBuffer_Release(&out);
    PyBuffer_Release(&frame);
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
    if (!open_axes(out_object, &made->out, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE, 3, "f", what)) {
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

PyDoc_STRVAR(app1_doc, "app1_segments(jpeg, /)\n--\n\n"
                       "Where the payloads of application segments 1 of a JPEG's header begin and end.");

static PyObject *app1_segments(PyObject *Py_UNUSED(module), PyObject *jpeg) {
    if (!PyBytes_Check(jpeg)) {
        PyErr_SetString(PyExc_TypeError, "a JPEG must be bytes");
        return NULL;
    }
    const uint8_t *bytes = (const uint8_t *)PyBytes_AS_STRING(jpeg);
    size_t position = 2, start, stop;
    PyObject *found = PyList_New(0);
    while (found != NULL && next_app1(bytes, (size_t)PyBytes_GET_SIZE(jpeg), &position, &start, &stop)) {
        PyObject *segment = Py_BuildValue("nn", (Py_ssize_t)start, (Py_ssize_t)stop);
        if (segment == NULL || PyList_Append(found, segment) != 0) {
            Py_CLEAR(found);
        }
        Py_XDECREF(segment);
    }
    return found;
}

static PyMethodDef methods[] = {
    {"app1_segments", app1_segments, METH_O, app1_doc},
    {"colour", colour, METH_VARARGS, colour_doc},
    {"crops", crops, METH_VARARGS, crops_doc},
    {"decode_region", decode, METH_VARARGS, decode_doc},
    {"look_up", look_up, METH_VARARGS, look_up_doc},
    {"resize", resize, METH_VARARGS, resize_doc},
    {NULL, NULL, 0, NULL},
};

enum { VERSION = 4 }; /* as in __init__.py: another one is not used */

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
