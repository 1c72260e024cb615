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

DEVICE Rgb colour(const Session& s, int x, int y) {
    Rgb c;
    if (s.frame) {
        c = pasted(s, x, y);
    } else {
        c = texel(s.picture + y * s.picture_row + (i64)x * s.picture_step);
    }
    const int mx = x - s.mark_x, my = y - s.mark_y;
    if (s.mark && mx >= 0 && my >= 0 && mx < s.mark_width && my < s.mark_height) {
        const u8* m = s.mark + my * s.mark_row + 4 * mx;
        c = {over(c.r, m[0], m[3]), over(c.g, m[1], m[3]), over(c.b, m[2], m[3])};
    }
    return c;
}

// BT.601, limited range, in 2^-20; the integers are OpenCV's, so that the results are, too.
constexpr int SHIFT = 20, HALF = 1 << (SHIFT - 1);

DEVICE u8 luma_of(const Rgb& c) {
    const int sum = 269484 * c.r + 528482 * c.g + 102760 * c.b;
    return (u8)clamp((sum + HALF + (16 << SHIFT)) >> SHIFT, 0, 255);
}

DEVICE u8 u_of(const Rgb& c) {
    const int sum = -155188 * c.r - 305135 * c.g + 460324 * c.b;
    return (u8)clamp((sum + HALF + (128 << SHIFT)) >> SHIFT, 0, 255);
}

DEVICE u8 v_of(const Rgb& c) {
    const int sum = 460324 * c.r - 385875 * c.g - 74448 * c.b;
    return (u8)clamp((sum + HALF + (128 << SHIFT)) >> SHIFT, 0, 255);
}

KERNEL(rgb_to_i420, Params, WIDTH* HEIGHT) {
    threads([&] {
        const Session s = p.sessions[blockIdx.z];
        const int x0 = (blockIdx.x * WIDTH + threadIdx.x) * PIXELS;
        const int y0 = (blockIdx.y * HEIGHT + threadIdx.y) * 2;
        if (x0 >= s.width || y0 >= s.height) return;
        const int last_x = s.width - 1, lower = y0 + 1 < s.height ? y0 + 1 : y0;
        Pack<u8, PIXELS> luma[2];
        Pack<u8, PIXELS / 2> us, vs;
#pragma unroll
        for (int i = 0; i < PIXELS; i += 2) {
            // Past an odd edge the last pixel is repeated.
            const int left = clamp(x0 + i, 0, last_x), right = clamp(x0 + i + 1, 0, last_x);
            const Rgb a = colour(s, left, y0), b = colour(s, right, y0);
            const Rgb c = colour(s, left, lower), d = colour(s, right, lower);
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
