// out = mask * warp(source, flow) + (1 - mask) * rgb at any output size, in one pass, and
// warping of feature maps by the same flow.
#include "../kernel.cuh"

// One session: its portrait and where its picture goes.
struct Session {
    const u8* source;  // (height, width, source_step) RGB or RGBx
    u8* out;           // (height, width, out_step) RGB or RGBx
    i64 source_row, out_row;  // bytes
    int width, height;
};

struct CompositeParams {
    const Session* sessions;  // (batch,)
    const void* flow;         // (batch, 2, flow_height, flow_width) T, source positions in [0, 1]
    const void* mask;         // (batch, 1, map_height, map_width) T, weight of the warp
    const void* rgb;          // (batch, 3, map_height, map_width) T, in [0, 1]
    i64 flow_batch, flow_plane, flow_row;  // elements
    i64 mask_batch, mask_row;
    i64 rgb_batch, rgb_plane, rgb_row;
    int flow_height, flow_width, map_height, map_width;
    int source_step, out_step;  // bytes per pixel, 3 or 4
};

constexpr int WIDTH = 32, HEIGHT = 8;  // threads
constexpr int PIXELS = 4;              // per thread, side by side
constexpr int TILE = WIDTH * PIXELS;   // output pixels of a block's row

struct Colour {
    float r, g, b;
};

DEVICE Colour mix(const Colour& a, const Colour& b, float t) {
    return {mix(a.r, b.r, t), mix(a.g, b.g, t), mix(a.b, b.b, t)};
}

DEVICE Colour texel(const u8* pixel, int step) {
    if (step == 4 && aligned<4>(pixel)) {
        const u32 word = *(const u32*)pixel;
        return {(float)(word & 255u), (float)(word >> 8 & 255u), (float)(word >> 16 & 255u)};
    }
    return {(float)pixel[0], (float)pixel[1], (float)pixel[2]};
}

DEVICE Colour sample(const Session& s, int step, float u, float v) {
    const Taps x = taps_at(u * (float)s.width - 0.5f, s.width);
    const Taps y = taps_at(v * (float)s.height - 0.5f, s.height);
    const u8 *top = s.source + y.a * s.source_row, *bottom = s.source + y.b * s.source_row;
    const Colour upper = mix(texel(top + x.a * step, step), texel(top + x.b * step, step), x.t);
    const Colour lower = mix(texel(bottom + x.a * step, step), texel(bottom + x.b * step, step), x.t);
    return mix(upper, lower, y.t);
}

// Keys' cubic convolution (1981), a = -0.75, at distance d >= 0.
DEVICE float keys(float d) {
    constexpr float A = -0.75f;
    if (d <= 1.0f) return ((A + 2.0f) * d - (A + 3.0f)) * d * d + 1.0f;
    if (d < 2.0f) return ((A * d - 5.0f * A) * d + 8.0f * A) * d - 4.0f * A;
    return 0.0f;
}

struct Cubic {
    int first;  // of four samples; may be -1: indices are clamped where they are used
    float w[4];
};

DEVICE Cubic cubic_of(int i, float step) {
    const float position = ((float)i + 0.5f) * step - 0.5f;
    const float below = floorf(position), t = position - below;
    Cubic c;
    c.first = (int)below - 1;
    c.w[0] = keys(1.0f + t);
    c.w[1] = keys(t);
    c.w[2] = keys(1.0f - t);
    c.w[3] = keys(2.0f - t);
    return c;
}

template <class T>
DEVICE Colour at_column(const T* row, i64 plane, int column) {
    return {to_float(row[column]), to_float(row[plane + column]), to_float(row[2 * plane + column])};
}

// One pixel of the drawn picture when it is made smaller: rare, so short instead of fast.
template <class T>
DEVICE Colour shrunk(const CompositeParams& p, const T* rgb, float x, float y) {
    const int first_x = (int)floorf(x) - 1, first_y = (int)floorf(y) - 1;
    Colour sum = {0.0f, 0.0f, 0.0f};
#pragma unroll 1
    for (int i = 0; i < 16; ++i) {
        const int column = first_x + i % 4, row = first_y + i / 4;
        const float w = keys(fabsf(x - (float)column)) * keys(fabsf(y - (float)row));
        const Colour c = at_column(rgb + clamp(row, 0, p.map_height - 1) * p.rgb_row, p.rgb_plane,
                                   clamp(column, 0, p.map_width - 1));
        sum.r += w * c.r;
        sum.g += w * c.g;
        sum.b += w * c.b;
    }
    return sum;
}

template <class T>
DEVICE void composite(const CompositeParams& p) {
    // The drawn picture, filtered from top to bottom, at the columns that this tile needs: the
    // four rows of a cubic are read once per column instead of once per output pixel.
    constexpr int COLUMNS = TILE + 4;
    SHARED float drawn[3][HEIGHT][COLUMNS];
    const Session s = p.sessions[blockIdx.z];
    const int x0 = blockIdx.x * TILE, y0 = blockIdx.y * HEIGHT;
    if (x0 >= s.width || y0 >= s.height) return;  // a smaller session; the whole block ends
    const float step_x = (float)p.map_width / (float)s.width;
    const float step_y = (float)p.map_height / (float)s.height;
    const bool same_size = p.map_width == s.width && p.map_height == s.height;
    // Enlarging, a tile's columns are neighbours and fit; shrinking, each pixel has its own.
    const bool shared_columns = !same_size && step_x <= 1.0f;
    const int first_column = cubic_of(x0, step_x).first;
    const int last_x = (x0 + TILE < s.width ? x0 + TILE : s.width) - 1;
    const int columns = cubic_of(last_x, step_x).first + 4 - first_column;
    const T* rgb = (const T*)p.rgb + blockIdx.z * p.rgb_batch;

    threads([&] {
        const int y = y0 + threadIdx.y;
        if (!shared_columns || y >= s.height) return;
        const Cubic c = cubic_of(y, step_y);
        for (int k = threadIdx.x; k < columns; k += WIDTH) {
            const int column = clamp(first_column + k, 0, p.map_width - 1);
            float sum[3] = {0.0f, 0.0f, 0.0f};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const T* at = rgb + clamp(c.first + j, 0, p.map_height - 1) * p.rgb_row + column;
#pragma unroll
                for (int i = 0; i < 3; ++i) sum[i] += c.w[j] * to_float(at[i * p.rgb_plane]);
            }
#pragma unroll
            for (int i = 0; i < 3; ++i) drawn[i][threadIdx.y][k] = sum[i];
        }
    });
    barrier();
    threads([&] {
        const int x = x0 + threadIdx.x * PIXELS, y = y0 + threadIdx.y;
        if (x >= s.width || y >= s.height) return;
        const T* flow = (const T*)p.flow + blockIdx.z * p.flow_batch;
        const T* mask = (const T*)p.mask + blockIdx.z * p.mask_batch;
        const Taps flow_y = taps_of(y, (float)p.flow_height / (float)s.height, p.flow_height);
        const Taps map_y = taps_of(y, step_y, p.map_height);
        const float flow_step = (float)p.flow_width / (float)s.width;
        u32 pixels[PIXELS] = {};
        // Two at a time hide each other's loads; four would need more registers than there are.
#pragma unroll 2
        for (int i = 0; i < PIXELS; ++i) {
            const int column = x + i < s.width ? x + i : s.width - 1;
            const Taps flow_x = taps_of(column, flow_step, p.flow_width);
            const float u = bilinear(flow, p.flow_row, flow_x, flow_y);
            const float v = bilinear(flow + p.flow_plane, p.flow_row, flow_x, flow_y);
            const float m = bilinear(mask, p.mask_row, taps_of(column, step_x, p.map_width), map_y);
            Colour mine = {0.0f, 0.0f, 0.0f};
            if (same_size) {
                mine = at_column(rgb + y * p.rgb_row, p.rgb_plane, column);
            } else if (shared_columns) {
                const Cubic c = cubic_of(column, step_x);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const int k = c.first - first_column + j;
                    mine.r += c.w[j] * drawn[0][threadIdx.y][k];
                    mine.g += c.w[j] * drawn[1][threadIdx.y][k];
                    mine.b += c.w[j] * drawn[2][threadIdx.y][k];
                }
            } else {
                mine = shrunk(p, rgb, ((float)column + 0.5f) * step_x - 0.5f,
                              ((float)y + 0.5f) * step_y - 0.5f);
            }
            const Colour warped = sample(s, p.source_step, u, v);
            const Colour own = {clamp(mine.r, 0.0f, 1.0f) * 255.0f,
                                clamp(mine.g, 0.0f, 1.0f) * 255.0f,
                                clamp(mine.b, 0.0f, 1.0f) * 255.0f};
            const Colour c = mix(own, warped, m);
            // Moved along, because an array in registers has no index.
            for (int k = 1; k < PIXELS; ++k) pixels[k - 1] = pixels[k];
            pixels[PIXELS - 1] = As<u8>::from(c.r) | (u32)As<u8>::from(c.g) << 8 |
                                 (u32)As<u8>::from(c.b) << 16 | 255u << 24;
        }
        u8* out = s.out + y * s.out_row + (i64)x * p.out_step;
        const int count = s.width - x < PIXELS ? s.width - x : PIXELS;
        if (p.out_step == 4) {
            Pack<u8, 16> bytes;
#pragma unroll
            for (int i = 0; i < 16; ++i) bytes.of[i] = (u8)(pixels[i / 4] >> 8 * (i % 4));
            store(out, bytes, count * 4);
        } else if (count == PIXELS && aligned<4>(out)) {
            // Four pixels of three bytes are three words.
            u32* words = (u32*)out;
            words[0] = (pixels[0] & 0xFFFFFFu) | pixels[1] << 24;
            words[1] = (pixels[1] >> 8 & 0xFFFFu) | pixels[2] << 16;
            words[2] = (pixels[2] >> 16 & 0xFFu) | pixels[3] << 8;
        } else {
            for (int i = 0; i < count; ++i) {
                for (int k = 0; k < 3; ++k) out[3 * i + k] = (u8)(pixels[i] >> 8 * k);
            }
        }
    });
}

// Four blocks, so 64 registers: for its own guess at a number the compiler spills on some cards.
KERNEL(warp_composite_f32, CompositeParams, WIDTH* HEIGHT, 4) { composite<float>(p); }
KERNEL(warp_composite_f16, CompositeParams, WIDTH* HEIGHT, 4) { composite<half>(p); }

struct FeaturesParams {
    const void* x;          // (batch, channels, in_height, in_width) T
    const void* flow;       // (batch, 2, flow_height, flow_width) T, source positions in [0, 1]
    const void* occlusion;  // (batch, 1, height, width) T, or null
    void* out;              // (batch, channels, height, width) T
    i64 x_batch, x_plane, x_row, flow_batch, flow_plane, flow_row;  // elements
    i64 occlusion_batch, occlusion_row, out_batch, out_plane, out_row;
    int channels, in_height, in_width, flow_height, flow_width, height, width;
};

// Channels that one thread warps: the position is found once for them.
constexpr int CHANNELS = 8;

template <class T>
DEVICE void features(const FeaturesParams& p) {
    threads([&] {
        const int x = blockIdx.x * WIDTH + threadIdx.x, y = blockIdx.y * HEIGHT + threadIdx.y;
        if (x >= p.width || y >= p.height) return;
        const int parts = (p.channels + CHANNELS - 1) / CHANNELS;
        const int b = blockIdx.z / parts, first = blockIdx.z % parts * CHANNELS;
        const T* flow = (const T*)p.flow + b * p.flow_batch;
        const Taps fx = taps_of(x, (float)p.flow_width / (float)p.width, p.flow_width);
        const Taps fy = taps_of(y, (float)p.flow_height / (float)p.height, p.flow_height);
        const float u = bilinear(flow, p.flow_row, fx, fy);
        const float v = bilinear(flow + p.flow_plane, p.flow_row, fx, fy);
        const Taps sx = taps_at(u * (float)p.in_width - 0.5f, p.in_width);
        const Taps sy = taps_at(v * (float)p.in_height - 0.5f, p.in_height);
        float seen = 1.0f;
        if (p.occlusion) {
            seen = to_float(((const T*)p.occlusion)[b * p.occlusion_batch + y * p.occlusion_row + x]);
        }
        const T* in = (const T*)p.x + b * p.x_batch;
        T* out = (T*)p.out + b * p.out_batch + y * p.out_row + x;
        const int end = first + CHANNELS < p.channels ? first + CHANNELS : p.channels;
        for (int c = first; c < end; ++c) {
            out[c * p.out_plane] = As<T>::from(seen * bilinear(in + c * p.x_plane, p.x_row, sx, sy));
        }
    });
}

KERNEL(warp_features_f32, FeaturesParams, WIDTH* HEIGHT) { features<float>(p); }
KERNEL(warp_features_f16, FeaturesParams, WIDTH* HEIGHT) { features<half>(p); }
