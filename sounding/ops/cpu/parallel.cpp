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
    int64_t count, grain;
    std::atomic<int64_t> next{0};  // first index that nobody has taken

    void run() {
        for (int64_t low; (low = next.fetch_add(grain)) < count;)
            work(low, std::min(low + grain, count));
    }
};

class Pool {
  public:
    void run(Job& job, int helpers) {
        while (int(workers_.size()) < helpers) {
            const int index = int(workers_.size());
            workers_.emplace_back([this, index] { serve(index); });
        }
        wanted_ = helpers;
        job_ = &job;
        round_++;
        if (sleeping_ > 0) {
            std::lock_guard<std::mutex> lock(mutex_);  // whoever is about to sleep gets the call
            wake_.notify_all();
        }
        job.run();
        // From here on nobody can join; only those inside are waited for, never a sleeper.
        job_ = nullptr;
        for (int waited = 0; inside_ > 0; waited++) {
            if (waited < 1000)
                pause();
            else
                std::this_thread::yield();  // a worker lost its core in the middle of a range
        }
    }

  private:
    void serve(int index) {
        uint64_t seen = 0;
        for (;;) {
            seen = await(seen);
            if (index >= wanted_) continue;
            inside_++;  // before looking at the job, which stays until nobody is inside
            if (Job* job = job_) job->run();
            inside_--;
        }
    }

    uint64_t await(uint64_t seen) {
        const auto until = Clock::now() + AWAKE;
        for (int tries = 0; stays_awake(); tries++) {
            if (round_ != seen) return round_;
            pause();
            if (tries % 64 == 63 && Clock::now() > until) break;
        }
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_++;
        wake_.wait(lock, [&] { return round_ != seen; });
        sleeping_--;
        return round_;
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
    std::atomic<Job*> job_{nullptr};
    std::atomic<int> wanted_{0}, inside_{0}, sleeping_{0};
    std::atomic<uint64_t> round_{0};
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
    Job job{work, count, grain};
    const int64_t ranges = (count + grain - 1) / grain;
    const int helpers = int(std::min<int64_t>(threads, ranges)) - 1;
    // A second caller at the same time runs its work alone instead of waiting.
    if (helpers <= 0 || taken.exchange(true, std::memory_order_acquire)) return job.run();
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
