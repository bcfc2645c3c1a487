#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <unistd.h>
#include <vector>

namespace {

struct Job {
    const std::function<void(int64_t, int64_t)>* work;
    int64_t count, grain;
    std::atomic<int64_t> next{0};  // first index that nobody has taken

    void run() {
        for (int64_t low; (low = next.fetch_add(grain)) < count;)
            (*work)(low, std::min(low + grain, count));
    }
};

class Pool {
  public:
    void run(Job& job, int helpers) {
        std::unique_lock<std::mutex> lock(mutex_);
        while (int(workers_.size()) < helpers) {
            const int index = int(workers_.size());
            workers_.emplace_back([this, index] { serve(index); });
        }
        job_ = &job;
        wanted_ = helpers;
        busy_ = helpers;
        round_++;
        lock.unlock();
        wake_.notify_all();
        job.run();
        lock.lock();
        done_.wait(lock, [this] { return busy_ == 0; });
        job_ = nullptr;
    }

  private:
    void serve(int index) {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return round_ != seen; });
            seen = round_;
            if (index >= wanted_ || job_ == nullptr) continue;
            Job* job = job_;
            lock.unlock();
            job->run();
            lock.lock();
            if (--busy_ == 0) done_.notify_one();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    Job* job_ = nullptr;
    int wanted_ = 0, busy_ = 0;
    uint64_t round_ = 0;
};

// A fork has no workers, and the parent's pool may be locked in it for ever: it gets its own. Pools
// are never destroyed, because workers of a library being unloaded would wake up in freed memory.
Pool& pool() {
    static std::mutex guard;
    static Pool* current = nullptr;
    static pid_t owner = 0;
    std::lock_guard<std::mutex> lock(guard);
    if (owner != getpid()) {
        current = new Pool;
        owner = getpid();
    }
    return *current;
}

std::mutex one_at_a_time;  // a second caller runs its work alone instead of waiting

}  // namespace

void parallel_for(int64_t count, int64_t grain, int threads,
                  const std::function<void(int64_t, int64_t)>& work) {
    Job job{&work, count, grain};
    const int64_t ranges = (count + grain - 1) / grain;
    const int helpers = int(std::min<int64_t>(threads, ranges)) - 1;
    std::unique_lock<std::mutex> only(one_at_a_time, std::try_to_lock);
    if (helpers <= 0 || !only.owns_lock())
        job.run();
    else
        pool().run(job, helpers);
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
