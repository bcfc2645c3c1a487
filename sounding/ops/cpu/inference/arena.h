// An arena for the memory of one step: pieces are released all at once, and the memory is kept for the next step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

class Arena {
  public:
    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena() {
        for (const Block& block : blocks_) std::free(block.data);
    }

    // Uninitialised, aligned to a cache line, with room for one more vector at the end.
    template <typename T> T* take(int64_t count) {
        const int64_t bytes = (count * int64_t(sizeof(T)) + 127) / 64 * 64;
        while (current_ < blocks_.size() && used_ + bytes > blocks_[current_].size) {
            current_++;
            used_ = 0;
        }
        if (current_ == blocks_.size()) add(bytes);
        uint8_t* result = blocks_[current_].data + used_;
        used_ += bytes;
        return reinterpret_cast<T*>(result);
    }

    // A mark to return to, which releases everything taken since.
    struct Mark {
        size_t block;
        int64_t used;
    };
    Mark mark() const { return {current_, used_}; }
    void release(const Mark& mark) {
        current_ = mark.block;
        used_ = mark.used;
    }

  private:
    struct Block {
        uint8_t* data;
        int64_t size;
    };

    void add(int64_t bytes) {
        const int64_t size = std::max<int64_t>((bytes + 4095) / 4096 * 4096, 1 << 20);
        void* data = std::aligned_alloc(4096, size_t(size));
        if (data == nullptr) throw std::bad_alloc();
        blocks_.push_back({static_cast<uint8_t*>(data), size});
        current_ = blocks_.size() - 1;
        used_ = 0;
    }

    std::vector<Block> blocks_;
    size_t current_ = 0;
    int64_t used_ = 0;
};

// A list of at most `room` plain values in an arena.
template <typename T> class List {
  public:
    List(Arena& arena, int64_t room) : data_(arena.take<T>(room)) {}

    void push_back(const T& value) { data_[count_++] = value; }
    void clear() { count_ = 0; }
    int64_t size() const { return count_; }
    T* data() const { return data_; }
    T& operator[](int64_t index) const { return data_[index]; }
    T& back() const { return data_[count_ - 1]; }

  private:
    T* data_;
    int64_t count_ = 0;
};

// Releases everything that a scope took.
struct Scope {
    explicit Scope(Arena& arena) : arena(arena), start(arena.mark()) {}
    ~Scope() { arena.release(start); }
    Arena& arena;
    Arena::Mark start;
};
