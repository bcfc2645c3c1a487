#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <pthread.h>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::microseconds AWAKE{400};  // time that a worker spins before it sleeps

std::atomic<int> steps{0};
std::atomic<Clock::time_point> step_ended{Clock::time_point()};

// True within a step and shortly after, when the next one usually begins.
bool stays_awake() { return steps > 0 || Clock::now() < step_ended.load() + AWAKE; }

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

struct Job {
    RangeWork work;
    int64_t count, grain, ranges;

    void run(int64_t range) const { work(range * grain, std::min((range + 1) * grain, count)); }
};

// A cache line takes a tenth of a microsecond to pass from one core to another, and a decoded token is a hundred jobs
// of a few microseconds. So workers watch one line, and everything else is in a second one.
class Pool {
  public:
    void run(const Job& job, int helpers) {
        while (int(workers_.size()) < helpers) {
            const int index = int(workers_.size());
            workers_.emplace_back([this, index] { serve(index); });
        }
        job_ = job;
        left_.store(uint64_t(job.ranges) << 32 | (uint64_t(job.ranges) + SPARE), std::memory_order_release);
        wanted_.store(helpers, std::memory_order_relaxed);
        round_.store(round_.load(std::memory_order_relaxed) + 1);
        if (sleeping_ > 0) {
            std::lock_guard<std::mutex> lock(mutex_);  // so that a worker about to sleep is notified
            wake_.notify_all();
        }
        work();
        // Wait for ranges that other threads have taken, never for sleeping ones.
        for (int waited = 0; left_.load(std::memory_order_acquire) >> 32 > 0; waited++) {
            if (waited < 1000)
                pause();
            else
                std::this_thread::yield();  // a worker was preempted within a range
        }
    }

  private:
    void work() {
        for (int64_t range = take(0); range >= 0; range = take(1)) job_.run(range);
    }

    // Return the next range of the job, or -1, and report `finished` ranges. A job is replaced only when all taken
    // ranges are finished, so a thread that holds a range may read it.
    int64_t take(uint64_t finished) {
        const uint64_t before = left_.fetch_sub(finished << 32 | 1, std::memory_order_acq_rel);
        const int64_t untaken = int64_t(before & 0xffffffff) - SPARE;
        return untaken > 0 ? job_.ranges - untaken : -1;
    }

    void serve(int index) {
        uint64_t seen = 0;
        for (;;) {
            seen = await(seen);
            if (index < wanted_.load(std::memory_order_relaxed)) work();
        }
    }

    uint64_t await(uint64_t seen) {
        const auto until = Clock::now() + AWAKE;
        for (int tries = 0; stays_awake(); tries++) {
            const uint64_t round = round_;
            if (round != seen) return round;
            pause();
            if (tries % 64 == 63 && Clock::now() > until) break;
        }
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_++;
        wake_.wait(lock, [&] { return round_ != seen; });
        sleeping_--;
        return round_;
    }

    // Offset of the count of untaken ranges, which unsuccessful calls decrement too.
    static constexpr int64_t SPARE = 1 << 16;

    alignas(64) std::atomic<uint64_t> round_{0};  // number of jobs so far
    std::atomic<int> wanted_{0};                  // workers that may join
    alignas(64) std::atomic<uint64_t> left_{0};   // ranges: unfinished in the upper half, untaken in the lower
    Job job_{};
    alignas(64) std::atomic<int> sleeping_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
};

// Guards the pool. A forked process has no workers, so it starts with a new pool.
std::atomic<bool> taken{false};
Pool* pool = nullptr;  // never destroyed: workers would wake up in freed memory when the library is unloaded

Pool& taken_pool() {
    [[maybe_unused]] static const int watched = pthread_atfork(nullptr, nullptr, [] {
        pool = nullptr;
        taken = false;
    });
    if (pool == nullptr) pool = new Pool;
    return *pool;
}

}  // namespace

void run_ranges(int64_t count, int64_t grain, int threads, RangeWork work) {
    const Job job{work, count, grain, (count + grain - 1) / grain};
    const int helpers = int(std::min<int64_t>(threads, job.ranges)) - 1;
    // A concurrent caller works alone instead of waiting.
    if (helpers <= 0 || taken.exchange(true, std::memory_order_acquire)) {
        for (int64_t range = 0; range < job.ranges; range++) job.run(range);
        return;
    }
    taken_pool().run(job, helpers);
    taken.store(false, std::memory_order_release);
}

int instruction_set() {
    static const int chosen = [] {
        int best = 1;
#if defined(__x86_64__) && defined(__GNUC__)
        best = __builtin_cpu_supports("x86-64-v4") ? 4 : __builtin_cpu_supports("x86-64-v3") ? 3 : 1;
#endif
        const char* wanted = std::getenv("SOUNDING_INSTRUCTION_SET");
        return wanted ? std::min(best, std::max(1, std::atoi(wanted))) : best;
    }();
    return chosen;
}

Step::Step() { steps++; }
Step::~Step() {
    step_ended = Clock::now();
    steps--;
}
