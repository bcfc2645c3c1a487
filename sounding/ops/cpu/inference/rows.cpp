// What is done to single rows: norms, rotations, and the formats that states keep them in.

#include <algorithm>

#include "network.h"
#include "rounding.h"

namespace {

CLONED void norm_row(const float* x, int64_t count, const float* weight, float eps,
                     BFloat16* out) {
    Floats square = {};
    const int64_t body = count / LANES * LANES;
    float rest = 0;
    for (int64_t i = 0; i < body; i += LANES) {
        Floats value;
        load(x + i, value);
        square += value * value;
    }
    for (int64_t i = body; i < count; i++) rest += x[i] * x[i];
    const float factor = 1.0f / std::sqrt((sum(square) + rest) / count + eps);
    for (int64_t i = 0; i < body; i += LANES) {
        Floats value, scale = all(1.0f);
        load(x + i, value);
        if (weight != nullptr) load(weight + i, scale);
        store(out + i, value * factor * scale);
    }
    for (int64_t i = body; i < count; i++)
        store_one(out + i, x[i] * factor * (weight != nullptr ? weight[i] : 1.0f));
}

CLONED void convert_row(const float* x, int64_t count, BFloat16* out) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        Floats value;
        load(x + i, value);
        store(out + i, value);
    }
    for (; i < count; i++) store_one(out + i, x[i]);
}

}  // namespace

void rms_norm(const float* x, int64_t count, const float* weight, float eps, BFloat16* out) {
    norm_row(x, count, weight, eps, out);
}

void to_bfloat16(const float* x, int64_t count, BFloat16* out) { convert_row(x, count, out); }

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

// A packed entry is its FP8 channels, the rotary ones in bfloat16, then scales; a packed index
// entry its FP4 channels, then scales. See model/rows.py.

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
