#include "nccl-api.h"

#include <dlfcn.h>

#include <mutex>

namespace ckpt {
namespace {

constexpr const char* kName = "libnccl.so.2";
// ncclCommInitRankConfig that does not block, maxCTAs, ncclGetLastError.
constexpr int kVersionMin = 21800;

std::string version_text(int version) {
  return format_text("%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
}

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) fail(CKPT_ERR_UNSUPPORTED, "%s has no %s", kName, name);
}

Nccl open() {
  // never closed: its threads and its exit handlers stay
  void* library = dlopen(kName, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* text = dlerror();
    fail(CKPT_ERR_UNSUPPORTED, "NCCL cannot be opened: %s", text == nullptr ? kName : text);
  }
  Nccl nccl{};
  int (*get_version)(int*) = nullptr;
  find(library, "ncclGetVersion", get_version);
  nccl.check(get_version(&nccl.version), nullptr, "ncclGetVersion");
  if (nccl.version < kVersionMin) {
    fail(CKPT_ERR_UNSUPPORTED, "NCCL %s is too old: %s or newer is needed",
         version_text(nccl.version).c_str(), version_text(kVersionMin).c_str());
  }
  find(library, "ncclGetUniqueId", nccl.get_unique_id);
  find(library, "ncclCommInitRankConfig", nccl.comm_init_rank_config);
  find(library, "ncclCommGetAsyncError", nccl.comm_get_async_error);
  find(library, "ncclCommAbort", nccl.comm_abort);
  find(library, "ncclBroadcast", nccl.broadcast);
  find(library, "ncclGetErrorString", nccl.get_error_string);
  find(library, "ncclGetLastError", nccl.get_last_error);
  return nccl;
}

}  // namespace

const Nccl& Nccl::get() {
  static std::mutex mutex;
  static const Nccl* opened = nullptr;
  std::lock_guard lock(mutex);
  if (opened == nullptr) opened = new Nccl(open());
  return *opened;
}

std::string Nccl::version_text() const { return ckpt::version_text(version); }

void Nccl::check(int result, Comm comm, const char* what) const {
  if (result == kSuccess || result == kInProgress) return;
  const char* error = get_error_string == nullptr ? "" : get_error_string(result);
  const char* more = get_last_error == nullptr ? "" : get_last_error(comm);
  // a rank that misses another does not know whom: who sees the connection of its daemon end does
  const ckpt_status status = result == kRemoteError ? CKPT_ERR_IO : CKPT_ERR_DEVICE;
  fail(status, "NCCL: %s: %s (%d) %s", what, error, result, more == nullptr ? "" : more);
}

}  // namespace ckpt
