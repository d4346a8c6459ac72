// The number of threads that is found by trying.
#include "common/thread-choice.h"

#include "test.h"

using ckpt::ThreadChoice;

namespace {

constexpr uint64_t kBytes = 1ull << 30;

// Seconds that the work takes with so many threads: eight are the best.
double seconds_with(uint32_t threads) { return threads == 8 ? 0.09 : threads == 4 ? 0.1 : 0.2; }

void try_all(ThreadChoice& choice) {
  for (int i = 0; i < 6; i++) {
    const uint32_t threads = choice.next(kBytes);
    choice.note(threads, kBytes, seconds_with(threads));
  }
}

}  // namespace

TEST("ThreadChoice tries each number twice and keeps the fastest") {
  ThreadChoice choice(std::vector<uint32_t>{4, 16, 8});
  std::vector<uint32_t> tried;
  for (int i = 0; i < 6; i++) {
    tried.push_back(choice.next(kBytes));
    choice.note(tried.back(), kBytes, seconds_with(tried.back()));
  }
  CHECK((tried == std::vector<uint32_t>{4, 16, 8, 4, 16, 8}));
  for (int i = 0; i < 3; i++) CHECK_EQ(choice.next(kBytes), 8u);
}

TEST("ThreadChoice forgives one disturbed try") {
  ThreadChoice choice(std::vector<uint32_t>{8, 4});
  CHECK_EQ(choice.next(kBytes), 8u);
  choice.note(8, kBytes, 1.0);
  CHECK_EQ(choice.next(kBytes), 4u);
  choice.note(4, kBytes, 0.1);
  CHECK_EQ(choice.next(kBytes), 8u);
  choice.note(8, kBytes, 0.09);
  choice.note(choice.next(kBytes), kBytes, 0.1);
  CHECK_EQ(choice.next(kBytes), 8u);
}

TEST("ThreadChoice does not learn from little work") {
  ThreadChoice choice(std::vector<uint32_t>{4, 16, 8});
  for (int i = 0; i < 10; i++) {
    CHECK_EQ(choice.next(4096), 4u);
    choice.note(4, 4096, 1e-9);
  }
  try_all(choice);
  CHECK_EQ(choice.next(4096), 8u);
}

TEST("ThreadChoice runs the work with a number of this machine") {
  ThreadChoice choice(16);
  for (int i = 0; i < 8; i++) {
    uint32_t seen = 0;
    choice.run(kBytes, [&](uint32_t threads) { seen = threads; });
    CHECK(seen >= 1 && seen <= 16);
  }
}

TEST("ThreadChoice counts a try when it has ended, not when it begins") {
  ThreadChoice choice(std::vector<uint32_t>{4, 8});
  for (int i = 0; i < 10; i++) choice.next(kBytes);
  for (int i = 0; i < 4; i++) {
    const uint32_t threads = choice.next(kBytes);
    choice.note(threads, kBytes, seconds_with(threads));
  }
  CHECK_EQ(choice.next(kBytes), 8u);
  for (int i = 0; i < 8; i++) {
    try {
      choice.run(kBytes, [](uint32_t) { throw 1; });
    } catch (int) {
    }
  }
  CHECK_EQ(choice.next(kBytes), 8u);
}

TEST("ThreadChoice tries again now and then, and follows what has become faster") {
  ThreadChoice choice(std::vector<uint32_t>{4, 8});
  const auto work = [&](int times, uint32_t fast) {
    for (int i = 0; i < times; i++) {
      const uint32_t threads = choice.next(kBytes);
      choice.note(threads, kBytes, threads == fast ? 0.1 : 0.2);
    }
  };
  work(4, 4);
  CHECK_EQ(choice.next(kBytes), 4u);
  work(200, 8);
  uint32_t eights = 0;
  for (int i = 0; i < 10; i++) {
    const uint32_t threads = choice.next(kBytes);
    eights += threads == 8;
    choice.note(threads, kBytes, threads == 8 ? 0.1 : 0.2);
  }
  CHECK(eights >= 9);
}
