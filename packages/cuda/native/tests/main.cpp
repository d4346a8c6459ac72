// ckpt-tests [--only TEXT]: runs the tests, prints "N passed, N failed, N skipped". Status 0: none
// failed, 1: some have, 77: there is no device to run them on. With --child it is a test's other
// process.
#include <dirent.h>

#include <cstdio>
#include <cstring>

#include "test.h"

namespace test {
namespace {

constexpr int kSkippedStatus = 77;

struct Entry {
  const char* name;
  void (*body)();
};

std::vector<Entry>& entries() {
  static std::vector<Entry> list;
  return list;
}

// Names of shared memory that this process made and did not remove.
std::string left_in_shared_memory() {
  const std::string prefix = "ckpt-" + std::to_string(getpid()) + "-";
  std::string left;
  DIR* folder = opendir("/dev/shm");
  while (const dirent* entry = readdir(folder)) {
    if (strncmp(entry->d_name, prefix.c_str(), prefix.size()) == 0)
      left += std::string(" ") + entry->d_name;
  }
  closedir(folder);
  return left;
}

// What a test must leave as it was. CUDA takes and keeps memory of its own, for kernels and
// streams, so that there the bytes are no measure.
struct Left {
  uint32_t objects = 0;
  uint64_t device_bytes = 0;
  std::string names;
  Left() {
    ckpt_live_objects(&objects);
    for (uint32_t device = 0; kHostLibrary && device < device_count(); device++) {
      uint64_t free_bytes = 0, total_bytes = 0;
      ckpt_device_memory(device, &free_bytes, &total_bytes);
      device_bytes += total_bytes - free_bytes;
    }
    names = left_in_shared_memory();
  }
};

std::string run_one(const Entry& entry) {
  const Left before;
  try {
    entry.body();
  } catch (const Failure& failure) {
    return failure.text;
  }
  const Left after;
  if (after.objects != before.objects) return "objects were left";
  if (after.names != before.names) return "shared memory was left:" + after.names;
  if (after.device_bytes != before.device_bytes) return "device memory was left";
  return "";
}

struct Counts {
  int passed = 0;
  int failed = 0;
  int skipped = 0;
};

void run_and_tell(const Entry& entry, Counts& counts) {
  const auto start = Clock::now();
  try {
    const std::string failure = run_one(entry);
    (failure.empty() ? counts.passed : counts.failed)++;
    printf("%s  %s (%.2f s)%s%s\n", failure.empty() ? "ok  " : "FAIL", entry.name,
           seconds_since(start), failure.empty() ? "" : "\n      ", failure.c_str());
  } catch (const Skipped& skipped) {
    counts.skipped++;
    printf("--    %s: skipped (%s)\n", entry.name, skipped.why);
  }
  fflush(stdout);
}

int run_all(const char* only) {
  const ckpt_config config{kHostDevices, 0, kHostDeviceBytes, 0, 0};
  const int32_t status = ckpt_init(&config);
  if (status == CKPT_ERR_UNSUPPORTED && !kHostLibrary) {
    printf("skipped: no CUDA device (%s)\n", last_error().c_str());
    return kSkippedStatus;
  }
  if (status != CKPT_OK) {
    printf("ckpt_init: %s\n", last_error().c_str());
    return 1;
  }
  Counts counts;
  for (const Entry& entry : entries()) {
    if (only == nullptr || strstr(entry.name, only) != nullptr) run_and_tell(entry, counts);
  }
  printf("%d passed, %d failed, %d skipped\n", counts.passed, counts.failed, counts.skipped);
  return counts.failed == 0 && counts.passed > 0 ? 0 : 1;
}

}  // namespace

Registration::Registration(const char* name, void (*body)()) { entries().push_back({name, body}); }

}  // namespace test

int main(int count, char** arguments) {
  if (count > 2 && strcmp(arguments[1], "--child") == 0) {
    return test::child_main(std::vector<std::string>(arguments + 2, arguments + count));
  }
  const int status =
      test::run_all(count > 2 && strcmp(arguments[1], "--only") == 0 ? arguments[2] : nullptr);
  fflush(stdout);  // a leak checker that fails at the end would keep it
  return status;
}
