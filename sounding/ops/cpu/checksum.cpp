// A checksum of bytes, fast enough to check every read of weights.

#include <cstdint>
#include <cstring>

// Eight lanes of 64-bit words, each h = (h ^ word) * odd, joined in the same way. Every step is a bijection of both h
// and the word, so that one changed word always changes the result. The bytes after the last whole word are one more
// word, filled with zeros; the length starts the sum. Words are read in little-endian order.
extern "C" uint64_t bytes_checksum(const uint8_t* data, int64_t count) {
    constexpr uint64_t ODD = 0x9e3779b97f4a7c15u;
    constexpr int LANES = 8;
    uint64_t lanes[LANES];
    for (int i = 0; i < LANES; i++) lanes[i] = uint64_t(count) + uint64_t(i) * ODD;
    const auto mix = [](uint64_t h, uint64_t word) {
        h = (h ^ word) * ODD;
        return h ^ h >> 29;
    };
    int64_t at = 0;
    for (; at + 8 * LANES <= count; at += 8 * LANES) {
        uint64_t words[LANES];
        std::memcpy(words, data + at, sizeof(words));
        for (int i = 0; i < LANES; i++) lanes[i] = mix(lanes[i], words[i]);
    }
    uint64_t result = 0;
    for (int i = 0; i < LANES; i++) result = mix(result, lanes[i]);
    for (; at < count; at += 8) {
        uint64_t word = 0;
        std::memcpy(&word, data + at, count - at < 8 ? size_t(count - at) : 8);
        result = mix(result, word);
    }
    return result;
}
