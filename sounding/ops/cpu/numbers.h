// Vectors of as many floats as a register of the target holds, in the compiler's vector type. (It would spill wider
// ones to memory.) Memory holds float32 or bfloat16; arithmetic is float32.
//
// Included once per instruction set by each_target.h: no include guard.

constexpr int REGISTER = LEVEL == 4 ? 64 : LEVEL == 3 ? 32 : 16;  // bytes
constexpr int LANES = REGISTER / 4;
struct Whole {
    constexpr operator int() const { return LANES; }
};
struct for_lanes {
    int size;
    template <typename Body>
    INLINE void operator<<(const Body& body) const {
        int i = 0;
        for (; i + LANES <= size; i += LANES) body(i, Whole{});
        if (i < size) body(i, size - i);
    }
};
typedef float Floats __attribute__((vector_size(REGISTER)));
typedef int32_t Integers __attribute__((vector_size(REGISTER)));
typedef uint32_t Words __attribute__((vector_size(REGISTER)));
typedef uint16_t Halves __attribute__((vector_size(REGISTER / 2)));

INLINE void load(const float* p, Floats& value) { std::memcpy(&value, p, sizeof value); }
INLINE void load(const BFloat16* p, Floats& value) {
    Halves halves;
    std::memcpy(&halves, p, sizeof halves);
#if LEVEL == 3  // the compiler's conversion takes several instructions
    value = Floats(_mm256_slli_epi32(_mm256_cvtepu16_epi32(__m128i(halves)), 16));
#else
    value = Floats(__builtin_convertvector(halves, Words) << 16);
#endif
}

INLINE void store(float* p, const Floats& value) { std::memcpy(p, &value, sizeof value); }
INLINE void store(BFloat16* p, const Floats& value) {
    Words wide;
    std::memcpy(&wide, &value, sizeof wide);
    Words rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
    Words nan = Words(value != value);
    Words kept = (rounded & ~nan) | (nan & 0x7fc0);
    Halves halves = __builtin_convertvector(kept, Halves);
    std::memcpy(p, &halves, sizeof halves);
}

// Reduction of the lanes of any vector in a fixed tree, so that a sum has the same bits everywhere.
template <typename Vector>
INLINE float sum(const Vector& value) {
    float lane[sizeof(Vector) / 4];
    std::memcpy(lane, &value, sizeof lane);
    for (int width = sizeof(Vector) / 8; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    return lane[0];
}

// e^x within 2 units in the last place; 0 below -87, infinity above 88, NaN for NaN.
INLINE Floats exp(const Floats& x) {
    constexpr float LOG2E = 1.44269504088896341f, LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
    constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
    const Floats inside = x < -87.0f ? Floats{} - 87.0f : x > 88.0f ? Floats{} + 88.0f : x;
    const Floats shifted = inside * LOG2E + ROUND;
    const Floats turns = shifted - ROUND;
    const Floats r = (inside - turns * LN2_HIGH) - turns * LN2_LOW;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Words bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4b400000u + 127) << 23;  // 2^turns, built from its exponent
    Floats scale;
    std::memcpy(&scale, &bits, sizeof scale);
    const Floats y = p * scale;
    return x < -87.0f ? Floats{} : x > 88.0f ? Floats{} + INFINITY : x == x ? y : x;
}

INLINE Floats sigmoid(const Floats& x) { return 1.0f / (1.0f + exp(-x)); }

INLINE Floats all(float value) { return Floats{} + value; }
INLINE Floats larger(const Floats& a, const Floats& b) { return a > b ? a : b; }

INLINE Floats from_bits(const Integers& bits) {
    Floats value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
INLINE Integers to_bits(const Floats& value) {
    Integers bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// log(1 + e) for e in [0, 1], as 2 atanh(e / (2 + e)).
INLINE Floats log_one_plus(const Floats& e) {
    const Floats s = e / (e + 2.0f), z = s * s;
    Floats p = all(1.0f / 15);
    for (const float next : {1.0f / 13, 1.0f / 11, 1.0f / 9, 1.0f / 7, 1.0f / 5, 1.0f / 3, 1.0f})
        p = p * z + next;
    return 2 * s * p;
}

// Load or store the first `count` lanes; the others are read as 0.
template <typename T>
INLINE void load_some(const T* p, int count, Floats& value) {
    T whole[LANES] = {};
    std::memcpy(whole, p, count * sizeof(T));
    load(whole, value);
}
template <typename T>
INLINE void store_some(T* p, int count, const Floats& value) {
    T whole[LANES];
    store(whole, value);
    std::memcpy(p, whole, count * sizeof(T));
}

INLINE Integers lane_numbers() {
    constexpr int32_t NUMBERS[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Integers lanes;
    std::memcpy(&lanes, NUMBERS, sizeof lanes);
    return lanes;
}

// `value` in the first `count` lanes, `rest` in the others. (Indexing lanes by a variable would keep the vector in
// memory.)
INLINE Floats first_lanes(const Floats& value, int count, float rest) {
    return lane_numbers() < count ? value : Floats{} + rest;
}

INLINE float maximum(const Floats& value) {  // NaN if there is one
    float lane[LANES];
    std::memcpy(lane, &value, sizeof lane);
    float most = lane[0];
    for (int i = 1; i < LANES; i++) most = lane[i] > most || lane[i] != lane[i] ? lane[i] : most;
    return most;
}
INLINE void raise(Floats& most, const Floats& value) { most = value > most || value != value ? value : most; }

template <typename T>
INLINE void load_lanes(const T* p, int count, Floats& value) {
    count == LANES ? load(p, value) : load_some(p, count, value);
}
template <typename T>
INLINE void store_lanes(T* p, int count, const Floats& value) {
    count == LANES ? store(p, value) : store_some(p, count, value);
}
