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
constexpr std::chrono::microseconds AWAKE{400};  // how long a worker waits before it sleeps

std::atomic<int> steps{0};
std::atomic<Clock::time_point> step_ended{Clock::time_point()};

// Within a step, and long enough after one for the next to begin: of a decoded token, its logits.
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

// A core takes a tenth of a microsecond to see what another one has written, line by line of its cache, and a
// decoded token is a hundred jobs of a few microseconds. So workers watch one line, and all else is in a second one.
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
            std::lock_guard<std::mutex> lock(mutex_);  // whoever is about to sleep gets the call
            wake_.notify_all();
        }
        work();
        // Ranges that others have taken are waited for, never a sleeper.
        for (int waited = 0; left_.load(std::memory_order_acquire) >> 32 > 0; waited++) {
            if (waited < 1000)
                pause();
            else
                std::this_thread::yield();  // a worker lost its core in the middle of a range
        }
    }

  private:
    void work() {
        for (int64_t range = take(0); range >= 0; range = take(1)) job_.run(range);
    }

    // The next range of the job, having finished so many; -1 if there is none. A job stays until the last range that
    // was taken is finished, so whoever has one may read it: after that it is the next job that gives ranges.
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

    // Below what is untaken: room for everyone who asks in vain.
    static constexpr int64_t SPARE = 1 << 16;

    alignas(64) std::atomic<uint64_t> round_{0};  // of jobs
    std::atomic<int> wanted_{0};                  // workers that may join
    alignas(64) std::atomic<uint64_t> left_{0};   // ranges: unfinished ones in the upper half, untaken ones below
    Job job_{};
    alignas(64) std::atomic<int> sleeping_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
};

// Whoever has taken it may use the pool. A fork has no workers, whatever was at work before: it begins anew.
std::atomic<bool> taken{false};
Pool* pool = nullptr;  // never destroyed: workers of a library being unloaded would wake up in freed memory

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
    // A second caller at the same time does its work alone instead of waiting.
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
