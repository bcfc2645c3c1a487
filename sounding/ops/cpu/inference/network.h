// Structs of a network, its states and one step; sounding/native/structs.py mirrors them.
#pragma once

#include "arena.h"
#include "multiply.h"
#include "weight.h"

// Small parameters, float32 or bfloat16 as stored.
struct Vector {
    const void* data;
    int64_t bfloat16;

    float at(int64_t i) const {
        return bfloat16 ? load_one(static_cast<const BFloat16*>(data) + i)
                        : static_cast<const float*>(data)[i];
    }
    // The values as float32: in place, or converted into `room`.
    const float* floats(int64_t count, float* room) const {
        if (!bfloat16) return static_cast<const float*>(data);
        for (int64_t i = 0; i < count; i++) room[i] = at(i);
        return room;
    }
};

struct HyperConnection {
    const float *fn, *base, *scale;
};

struct Pooling {  // a compressor
    Weight wkv, wgate;
    Vector ape, norm;
    int64_t width;  // channels of an entry
};

// Experts that are not all in memory. Its functions run on the thread that runs the network.
struct ExpertSource {
    // Announces the experts that a step needs of a layer, and the last row that needs each. Returns 0, or -1 if the
    // step is to end.
    int64_t (*need)(int64_t layer, const int64_t* experts, const int64_t* last_rows, int64_t count);
    // Writes announced experts that are in memory now and returns how many: the first call those there at once, a
    // further one at least one that was not given yet. Those given before may be gone then. -1 if the step is to end.
    int64_t (*next)(int64_t layer, int64_t* experts);
};

struct Layer {
    int64_t ratio;             // tokens per compressed entry; 0: window only
    const float* frequencies;  // rotary, one per pair
    Vector attn_norm, ffn_norm, q_norm, kv_norm, sink;
    HyperConnection attn_hc, ffn_hc;
    Weight wq_a, wq_b, wkv, wo_a, wo_b;
    Pooling compressor, index_compressor;
    Weight index_wq_b, index_weights;
    Weight gate;
    Vector bias;
    const int64_t* table;  // hash layers: token to experts
    const Weight *w1, *w2, *w3;  // one per expert, which need not be contiguous
    Weight shared_w1, shared_w2, shared_w3;
    const ExpertSource* source;  // null: all experts are in memory
    int64_t number;              // of this layer for the source
};

// What an adapter adds to a weight's product: factor * high (low x). Without rows in `low` it is nothing.
struct Delta {
    Weight low, high;  // [rank, columns] and [rows, rank]
    double factor;
};

// The deltas of one layer.
struct AdapterLayer {
    Delta wq_a, wq_b, wkv, wo_a, wo_b;
    const Delta *w1, *w2, *w3;  // one per expert
    Delta shared_w1, shared_w2, shared_w3;
};

struct Network {
    int64_t channels, streams, heads, head_dim, rotary, q_rank, groups, o_rank, window;
    int64_t index_heads, index_width, index_limit;
    int64_t experts, choices, inner, vocabulary;
    int64_t iterations, simulate_kv, simulate_index;
    double norm_eps, hc_eps, swiglu_limit, routed_scale;
};

// The parts before and after the layers.
struct Ends {
    Weight embedding, head;
    HyperConnection hc;
    Vector norm;
};

// The input of an MTP block: the next token's embedding and the streams, each normalised and projected.
struct DraftEnds {
    Weight embedding, e_proj, h_proj;
    Vector enorm, hnorm;
};

constexpr int64_t CSA = 4;  // the ratio with overlapping groups and an indexer

// A list of rows with its own memory (native/rows.py): row i is in slot i % slots.
enum RowFormat : int64_t { ROW_FLOAT32, ROW_BFLOAT16, ROW_KV, ROW_INDEX };
struct Rows {
    uint8_t* data;
    int64_t* used;  // rows written to this memory, which several lists may share
    int64_t slots, row_bytes, length, kept;
    int64_t bounded;  // only the last `slots` rows are kept
    int64_t shared, format;

    const uint8_t* at(int64_t i) const { return data + i % slots * row_bytes; }
    bool has_room(int64_t count) const {
        if (format < 0) return false;  // no memory yet
        return bounded || (length + count <= slots && (!shared || *used == length));
    }
};
// The lists of each layer; null where a layer has no such list.
enum RowsOf { WINDOW, PROJECTIONS, ENTRIES, INDEX_PROJECTIONS, INDEX_ENTRIES, LISTS };

struct Span {
    int64_t first, length, start;  // rows of the step; the absolute position of the first
    Rows* const* lists;            // the lists of this sequence and layer
};

// The rows of a step whose sequences have the same adapter.
struct Adapted {
    const AdapterLayer* layer;
    const int64_t* rows;
    int64_t count;
};

// One step: the next tokens of some sequences, and scratch memory.
struct Work {
    const Network& net;
    const Layer& layer;
    const int64_t* tokens;
    const int64_t* positions;
    const Span* spans;
    int64_t count, sequences;
    int threads;
    Arena& arena;
    const Adapted* adapted;  // none in a step of the base alone
    int64_t adapters;
    bool block;  // spans are blocks of drafts: each token sees the window before its span and all of it
};

// rounding.cpp and rotary.cpp, row by row
void rms_norm(const float* x, int64_t count, const float* weight, float eps, BFloat16* out);
void to_bfloat16(const float* x, int64_t count, BFloat16* out);
void to_float(const BFloat16* x, int64_t count, float* out);
struct Angles {
    const float *cos, *sin;  // of one position, one per pair
};
void find_angles(int64_t position, const float* frequencies, int64_t pairs, float* cos, float* sin);
void rotate(BFloat16* x, int64_t width, int64_t rotary, const Angles& by);

// rows.cpp
void load_row(const Network& net, const Rows& rows, const uint8_t* row, BFloat16* out);
void store_row(const Network& net, const Rows& rows, const BFloat16* x, uint8_t* row);
void append(Rows& rows, const uint8_t* packed, int64_t count);

// hyper.cpp: from the streams to the input of a sub-layer, and back
struct Connection {
    BFloat16* x;  // normalised input, [t, c]
    float *post, *mix;
};
Connection connect(const Work& work, const BFloat16* streams, const HyperConnection& hc,
                   const Vector& norm);
void write_back(const Work& work, BFloat16* streams, const Connection& by, const BFloat16* output);
// The input of the head for some rows of the streams, or for the first `count`; without data in `norm` before
// its norm.
void collapse(const Network& net, const HyperConnection& hc, const Vector& norm, const BFloat16* streams,
              const int64_t* rows, int64_t count, BFloat16* out, int threads);

// deltas.cpp: out[to[i]] += factor * high (low x[from[i]]), for i below `count`. The bits of a row
// depend on neither the rows beside it nor the threads.
void add_delta(const Delta& delta, const BFloat16* x, int64_t stride, const int64_t* from, const int64_t* to,
               int64_t count, float* out, int64_t out_stride, int threads, Arena& arena);
// The same for the rows of every adapter of the step.
void add_deltas(const Work& work, Delta AdapterLayer::*which, const BFloat16* x, int64_t stride, float* out,
                int64_t out_stride);
// The deltas of a product by group: `which` has the outputs of all groups, one below the other.
void add_grouped_deltas(const Work& work, Delta AdapterLayer::*which, const BFloat16* x, int64_t stride, float* out,
                        int64_t out_stride);

// attention.cpp, compressor.cpp, indexer.cpp
void attention(const Work& work, const BFloat16* x, BFloat16* output);
// Append the entries of newly complete groups to the lists `entries` of each span.
void compress(const Work& work, const Pooling& pooling, const float* values, float* gates,
              RowsOf projections, RowsOf entries, bool index);
// chosen[t * limit ...]: entries in ascending order, then -1; counts[t] of them.
void choose(const Work& work, const BFloat16* queries, const float* weights, int32_t* chosen,
            int32_t* counts);

// experts.cpp: false if the source of the experts ended the step
bool experts(const Work& work, const BFloat16* x, BFloat16* output, int64_t* chosen, float* scores);
