// A webcam frame in I420 or NV12 and an affine -> the aligned, normalised crop that a network
// takes: colour conversion, resampling and normalisation in one pass.
#include "../kernel.cuh"

// One session's picture.
struct Picture {
    const u8* y;  // (height, width)
    const u8* u;  // ((height + 1) / 2, (width + 1) / 2), u_step bytes apart
    const u8* v;
    i64 y_row, chroma_row;  // bytes
    int chroma_step;        // bytes from one u to the next: 1 for I420, 2 for NV12
    int width, height;
    int taps;  // samples per axis and output pixel, more than 1 where the crop shrinks; 0: black
    float matrix[6];  // crop pixel -> picture pixel, both with centres at +0.5, row by row
    // r = y_scale (y - y_offset) + r_v (v - 128), and so on; results in 0..255.
    float y_offset, y_scale, r_v, g_u, g_v, b_u;
};

struct Params {
    const Picture* pictures;  // (batch,)
    void* out;                // (batch, 3, height, width) T: rgb * scale + offset
    i64 out_batch, out_plane, out_row;  // elements
    int width, height;
    float scale, offset;
};

constexpr int WIDTH = 32, HEIGHT = 8;
constexpr int PIXELS = 2;  // per thread, side by side, stored together

// Offsets within a plane fit into 32 bits, and are the same for u and v.
DEVICE float chroma(const u8* plane, const Picture& p, const Taps& x, const Taps& y) {
    const int top = y.a * (int)p.chroma_row, bottom = y.b * (int)p.chroma_row;
    const int a = x.a * p.chroma_step, b = x.b * p.chroma_step;
    return mix(mix(to_float(plane[top + a]), to_float(plane[top + b]), x.t),
               mix(to_float(plane[bottom + a]), to_float(plane[bottom + b]), x.t), y.t);
}

template <class T>
DEVICE void yuv_to_tensor(const Params& p) {
    threads([&] {
        const int x0 = (blockIdx.x * WIDTH + threadIdx.x) * PIXELS;
        const int y0 = blockIdx.y * HEIGHT + threadIdx.y;
        if (x0 >= p.width || y0 >= p.height) return;
        const Picture s = p.pictures[blockIdx.z];
        const int chroma_width = (s.width + 1) / 2, chroma_height = (s.height + 1) / 2;
        const float share = 1.0f / (float)s.taps;
        Pack<T, PIXELS> rgb[3];
#pragma unroll
        for (int i = 0; i < PIXELS; ++i) {
            float luma = 0.0f, u = 0.0f, v = 0.0f;
            for (int t = 0; t < s.taps * s.taps; ++t) {
                const float cx = (float)(x0 + i) + ((float)(t % s.taps) + 0.5f) * share;
                const float cy = (float)y0 + ((float)(t / s.taps) + 0.5f) * share;
                const float px = s.matrix[0] * cx + s.matrix[1] * cy + s.matrix[2];
                const float py = s.matrix[3] * cx + s.matrix[4] * cy + s.matrix[5];
                luma += bilinear(s.y, s.y_row, taps_at(px - 0.5f, s.width),
                                 taps_at(py - 0.5f, s.height));
                // A chroma sample lies in the middle of its four pixels.
                const Taps ux = taps_at(px * 0.5f - 0.5f, chroma_width);
                const Taps uy = taps_at(py * 0.5f - 0.5f, chroma_height);
                u += chroma(s.u, s, ux, uy);
                v += chroma(s.v, s, ux, uy);
            }
            const float mean = share * share;
            luma = (luma * mean - s.y_offset) * s.y_scale;
            u = u * mean - 128.0f;
            v = v * mean - 128.0f;
            const float r = luma + s.r_v * v, g = luma + s.g_u * u + s.g_v * v, b = luma + s.b_u * u;
            rgb[0].of[i] = As<T>::from(clamp(r, 0.0f, 255.0f) * p.scale + p.offset);
            rgb[1].of[i] = As<T>::from(clamp(g, 0.0f, 255.0f) * p.scale + p.offset);
            rgb[2].of[i] = As<T>::from(clamp(b, 0.0f, 255.0f) * p.scale + p.offset);
        }
        T* out = (T*)p.out + blockIdx.z * p.out_batch + y0 * p.out_row + x0;
#pragma unroll
        for (int c = 0; c < 3; ++c) store(out + c * p.out_plane, rgb[c], p.width - x0);
    });
}

KERNEL(yuv_to_tensor_f32, Params, WIDTH* HEIGHT) { yuv_to_tensor<float>(p); }
KERNEL(yuv_to_tensor_f16, Params, WIDTH* HEIGHT) { yuv_to_tensor<half>(p); }
