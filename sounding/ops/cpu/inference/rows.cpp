// Operations on single rows: norms, rotations, and the formats of states.

#define KERNELS "inference/rows.cpp"
#ifndef TARGET

#include <algorithm>

#include "network.h"
#include "rounding.h"

#include "../each_target.h"

void rms_norm(const float* x, int64_t count, const float* weight, float eps, BFloat16* out) {
    CALL(norm_row, x, count, weight, eps, out);
}

void to_bfloat16(const float* x, int64_t count, BFloat16* out) {
    CALL(convert_row, x, count, out);
}

void to_float(const BFloat16* x, int64_t count, float* out) { CALL(widen_row, x, count, out); }

void find_angles(int64_t position, const float* frequencies, int64_t pairs, float* cos,
                 float* sin) {
    for (int64_t i = 0; i < pairs; i++) {
        const float angle = float(position) * frequencies[i];
        cos[i] = std::cos(angle);
        sin[i] = std::sin(angle);
    }
}

void rotate(BFloat16* x, int64_t width, int64_t rotary, const Angles& by) {
    BFloat16* turned = x + width - rotary;
    for (int64_t i = 0; i < rotary / 2; i++) {
        const float even = load_one(turned + 2 * i), odd = load_one(turned + 2 * i + 1);
        store_one(turned + 2 * i, even * by.cos[i] - odd * by.sin[i]);
        store_one(turned + 2 * i + 1, even * by.sin[i] + odd * by.cos[i]);
    }
}

// A packed entry has FP8 channels, then rotary channels in bfloat16, then scales; a packed index entry has
// FP4 channels, then scales. See model/rows.py.

void load_row(const Network& net, const Rows& rows, const uint8_t* row, BFloat16* out) {
    if (rows.format == ROW_KV) {
        const int64_t plain = net.head_dim - net.rotary;
        decode_fp8(row, row + plain + 2 * net.rotary, plain, KV_BLOCK, out);
        std::memcpy(out + plain, row + plain, 2 * net.rotary);
    } else {
        std::memcpy(out, row, rows.row_bytes);
    }
}

void store_row(const Network& net, const Rows& rows, const BFloat16* x, uint8_t* row) {
    if (rows.format == ROW_KV) {
        const int64_t plain = net.head_dim - net.rotary;
        std::fill(row + plain + 2 * net.rotary, row + rows.row_bytes, uint8_t(0));
        encode_fp8(x, plain, KV_BLOCK, row, row + plain + 2 * net.rotary);
        std::memcpy(row + plain, x + plain, 2 * net.rotary);
    } else if (rows.format == ROW_INDEX) {
        encode_fp4(x, net.index_width, row, row + net.index_width / 2);
    } else {
        std::memcpy(row, x, rows.row_bytes);
    }
}

void append(Rows& rows, const uint8_t* packed, int64_t count) {
    const int64_t kept = std::min(count, rows.slots);
    for (int64_t i = count - kept; i < count; i++)
        std::memcpy(rows.data + (rows.length + i) % rows.slots * rows.row_bytes,
                    packed + i * rows.row_bytes, rows.row_bytes);
    rows.length += count;
    rows.kept = std::min(rows.kept + count, rows.slots);
    *rows.used = rows.length;
}

#else

namespace {

void norm_row(const float* x, int64_t count, const float* weight, float eps, BFloat16* out) {
    Floats square = {};
    FOR_LANES(i, some, count) {
        Floats value;
        load_lanes(x + i, some, value);
        square += value * value;
    };
    const float factor = 1.0f / std::sqrt(sum(square) / count + eps);
    FOR_LANES(i, some, count) {
        Floats value, scale = all(1.0f);
        load_lanes(x + i, some, value);
        if (weight != nullptr) load_lanes(weight + i, some, scale);
        store_lanes(out + i, some, value * factor * scale);
    };
}

void widen_row(const BFloat16* x, int64_t count, float* out) {
    for (int64_t i = 0; i < count; i++) out[i] = load_one(x + i);
}

void convert_row(const float* x, int64_t count, BFloat16* out) {
    FOR_LANES(i, some, count) {
        Floats value;
        load_lanes(x + i, some, value);
        store_lanes(out + i, some, value);
    };
}

}  // namespace

#endif
