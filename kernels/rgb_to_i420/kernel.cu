// A finished picture -> I420 for the encoder: paste it back into a full frame if there is one,
// put the visible mark on it, convert, and write it where the host reads it.
#include "../kernel.cuh"

// One session. `frame` null: the picture is the frame, pixel by pixel.
struct Session {
    const u8* picture;  // (picture_height, picture_width, picture_step) RGB or RGBx
    const u8* frame;    // (height, width, frame_step) RGB or RGBx, or null
    const u8* mark;     // (mark_height, mark_width, 4) RGBA, or null
    u8 *y, *u, *v;      // (height, width) and twice ((height + 1) / 2, (width + 1) / 2)
    i64 picture_row, frame_row, mark_row, y_row, chroma_row;  // bytes
    int picture_step, frame_step;                             // bytes per pixel, 3 or 4
    int picture_width, picture_height, width, height;
    int mark_x, mark_y, mark_width, mark_height;
    float matrix[6];  // frame pixel -> picture pixel, both with centres at +0.5, row by row
    float feather;    // picture pixels from its rim over which it comes in
};

struct Params {
    const Session* sessions;  // (batch,)
    int mean_chroma;          // 0: the colour of the upper left pixel of four, 1: their mean
};

constexpr int WIDTH = 32, HEIGHT = 4;
constexpr int PIXELS = 8;  // a thread makes 8 x 2 luma samples and 4 of each chroma

struct Rgb {
    int r, g, b;
};

DEVICE Rgb texel(const u8* pixel) { return {pixel[0], pixel[1], pixel[2]}; }

DEVICE float sampled(const Session& s, int channel, const Taps& x, const Taps& y) {
    const u8* top = s.picture + y.a * s.picture_row + channel;
    const u8* bottom = s.picture + y.b * s.picture_row + channel;
    const int a = x.a * s.picture_step, b = x.b * s.picture_step;
    return mix(mix(to_float(top[a]), to_float(top[b]), x.t),
               mix(to_float(bottom[a]), to_float(bottom[b]), x.t), y.t);
}

DEVICE Rgb pasted(const Session& s, int x, int y) {
    const Rgb below = texel(s.frame + y * s.frame_row + (i64)x * s.frame_step);
    const float fx = (float)x + 0.5f, fy = (float)y + 0.5f;
    const float px = s.matrix[0] * fx + s.matrix[1] * fy + s.matrix[2];
    const float py = s.matrix[3] * fx + s.matrix[4] * fy + s.matrix[5];
    const float rim = fminf(fminf(px, (float)s.picture_width - px),
                            fminf(py, (float)s.picture_height - py));
    if (!(rim > 0.0f)) return below;
    const float weight = s.feather > 0.0f ? fminf(rim / s.feather, 1.0f) : 1.0f;
    const Taps tx = taps_at(px - 0.5f, s.picture_width), ty = taps_at(py - 0.5f, s.picture_height);
    return {As<u8>::from(mix((float)below.r, sampled(s, 0, tx, ty), weight)),
            As<u8>::from(mix((float)below.g, sampled(s, 1, tx, ty), weight)),
            As<u8>::from(mix((float)below.b, sampled(s, 2, tx, ty), weight))};
}

DEVICE int over(int below, int above, int alpha) {
    return (below * (255 - alpha) + above * alpha + 127) / 255;
}

// Pixels are handed on as words, R lowest.
DEVICE u32 word_of(const Rgb& c) { return (u32)c.r | (u32)c.g << 8 | (u32)c.b << 16; }

DEVICE Rgb rgb_of(u32 word) {
    return {(int)(word & 255u), (int)(word >> 8 & 255u), (int)(word >> 16 & 255u)};
}

DEVICE u32 marked(const Session& s, u32 word, int mx, int my) {
    if (mx < 0 || mx >= s.mark_width) return word;
    const u8* m = s.mark + my * s.mark_row + 4 * mx;
    const Rgb c = rgb_of(word);
    return word_of({over(c.r, m[0], m[3]), over(c.g, m[1], m[3]), over(c.b, m[2], m[3])});
}

// Eight pixels of line y from x0 on; past the edge the last one is repeated.
DEVICE void read_line(const Session& s, int x0, int y, u32 (&line)[PIXELS]) {
    const int count = s.width - x0;
    const u8* from = s.picture + y * s.picture_row + (i64)x0 * s.picture_step;
    if (!s.frame && s.picture_step == 4 && aligned<4>(from)) {
        // The product's way: four pixels are one load.
        const Pack<u32, 4> first = load<u32, 4>((const u32*)from, count);
        const Pack<u32, 4> second = load<u32, 4>((const u32*)from + 4, count - 4);
#pragma unroll
        for (int i = 0; i < PIXELS; ++i) line[i] = i < 4 ? first.of[i % 4] : second.of[i % 4];
#pragma unroll
        for (int i = 1; i < PIXELS; ++i) line[i] = i < count ? line[i] : line[i - 1];
    } else {
#pragma unroll
        for (int i = 0; i < PIXELS; ++i) line[i] = 0;
#pragma unroll 1
        for (int i = 0; i < PIXELS; ++i) {
            const int x = i < count ? x0 + i : s.width - 1;
            const Rgb c = s.frame ? pasted(s, x, y)
                                  : texel(s.picture + y * s.picture_row + (i64)x * s.picture_step);
            // Moved along, because an array in registers has no index.
#pragma unroll
            for (int k = 1; k < PIXELS; ++k) line[k - 1] = line[k];
            line[PIXELS - 1] = word_of(c);
        }
    }
    const int my = y - s.mark_y, mx = x0 - s.mark_x;
    if (s.mark && my >= 0 && my < s.mark_height && mx > -PIXELS && mx < s.mark_width) {
#pragma unroll
        for (int i = 0; i < PIXELS; ++i) {
            line[i] = marked(s, line[i], (i < count ? mx + i : s.width - 1 - s.mark_x), my);
        }
    }
}

// BT.601, limited range, in 2^-20; the integers are OpenCV's, so that the results are, too.
// Bytes give 16 to 235 and 16 to 240: nothing needs to be clamped.
constexpr int SHIFT = 20, HALF = 1 << (SHIFT - 1);

DEVICE u8 luma_of(const Rgb& c) {
    const int sum = 269484 * c.r + 528482 * c.g + 102760 * c.b;
    return (u8)((sum + HALF + (16 << SHIFT)) >> SHIFT);
}

DEVICE u8 u_of(const Rgb& c) {
    const int sum = -155188 * c.r - 305135 * c.g + 460324 * c.b;
    return (u8)((sum + HALF + (128 << SHIFT)) >> SHIFT);
}

DEVICE u8 v_of(const Rgb& c) {
    const int sum = 460324 * c.r - 385875 * c.g - 74448 * c.b;
    return (u8)((sum + HALF + (128 << SHIFT)) >> SHIFT);
}

KERNEL(rgb_to_i420, Params, WIDTH* HEIGHT) {
    threads([&] {
        const Session& s = p.sessions[blockIdx.z];
        const int x0 = (blockIdx.x * WIDTH + threadIdx.x) * PIXELS;
        const int y0 = (blockIdx.y * HEIGHT + threadIdx.y) * 2;
        if (x0 >= s.width || y0 >= s.height) return;
        u32 upper[PIXELS], lower[PIXELS];
        read_line(s, x0, y0, upper);
        // Past an odd height the last line is repeated.
        read_line(s, x0, y0 + 1 < s.height ? y0 + 1 : y0, lower);
        Pack<u8, PIXELS> luma[2];
        Pack<u8, PIXELS / 2> us, vs;
#pragma unroll
        for (int i = 0; i < PIXELS; i += 2) {
            const Rgb a = rgb_of(upper[i]), b = rgb_of(upper[i + 1]);
            const Rgb c = rgb_of(lower[i]), d = rgb_of(lower[i + 1]);
            luma[0].of[i] = luma_of(a);
            luma[0].of[i + 1] = luma_of(b);
            luma[1].of[i] = luma_of(c);
            luma[1].of[i + 1] = luma_of(d);
            Rgb mean = a;
            if (p.mean_chroma) {
                mean = {(a.r + b.r + c.r + d.r + 2) / 4, (a.g + b.g + c.g + d.g + 2) / 4,
                        (a.b + b.b + c.b + d.b + 2) / 4};
            }
            us.of[i / 2] = u_of(mean);
            vs.of[i / 2] = v_of(mean);
        }
        const int count = s.width - x0, chroma_count = (count + 1) / 2;
        store(s.y + y0 * s.y_row + x0, luma[0], count);
        if (y0 + 1 < s.height) store(s.y + (y0 + 1) * s.y_row + x0, luma[1], count);
        const i64 chroma_at = y0 / 2 * s.chroma_row + x0 / 2;
        store(s.u + chroma_at, us, chroma_count);
        store(s.v + chroma_at, vs, chroma_count);
    });
}
