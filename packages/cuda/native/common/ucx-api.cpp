#include "ucx-api.h"

#include <dlfcn.h>

#include <cstdlib>
#include <mutex>

namespace ckpt {
namespace {

constexpr const char* kName = "libucp.so.0";
// ucp_ep_close_nbx with flags, peer failures of shared memory.
constexpr unsigned kMajorMin = 1, kMinorMin = 12;

// Read by UCX's libraries when they are loaded. What the user has set stays.
constexpr struct {
  const char* name;
  const char* value;
} kSettings[] = {
    // It would patch mmap, munmap and CUDA's functions in this process.
    {"UCX_MEM_EVENTS", "n"},
    {"UCX_MEM_MMAP_HOOK_MODE", "none"},
    {"UCX_MEM_CUDA_HOOK_MODE", "none"},
    // Which addresses are a device's is only known with these hooks.
    {"UCX_MEMTYPE_CACHE", "n"},
    // Signals are Bun's.
    {"UCX_ERROR_SIGNALS", ""},
    {"UCX_HANDLE_ERRORS", "none"},
    {"UCX_WARN_UNUSED_ENV_VARS", "n"},
    {"UCX_LOG_LEVEL", "error"},
    // Stdout is the program's.
    {"UCX_LOG_FILE", "stderr"},
    // A thread that serves a file system of its objects.
    {"UCX_VFS_ENABLE", "n"},
    // Shared memory is left out where failures of peers are to be told, unless this is set (CMA is
    // all the same, in 1.13). It sees that a process is gone when it looks, by default every 20 s.
    {"UCX_MM_ERROR_HANDLING", "y"},
    {"UCX_KEEPALIVE_INTERVAL", "1s"},
    // Messages over TCP go in parts of this size, by default 8 KiB: 3.3 GB/s on loopback instead of
    // 1.4.
    {"UCX_TCP_TX_SEG_SIZE", "64k"},
    // With TCP's sends from where the bytes lie, a peer that goes amid one can end this process
    // ("Assertion `comp->count > 0' failed", 1.13). Copied first they are about as fast.
    {"UCX_TCP_MAX_IOV", "0"},
    {"UCX_TCP_PUT_ENABLE", "n"},
};

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) fail(CKPT_ERR_UNSUPPORTED, "%s has no %s", kName, name);
}

void require_version(void* library) {
  void (*get_version)(unsigned*, unsigned*, unsigned*) = nullptr;
  find(library, "ucp_get_version", get_version);
  unsigned major = 0, minor = 0, release = 0;
  get_version(&major, &minor, &release);
  if (major != kMajorMin || minor < kMinorMin) {
    fail(CKPT_ERR_UNSUPPORTED, "this is UCX %u.%u.%u: %u.%u or a newer %u is needed", major, minor,
         release, kMajorMin, kMinorMin, kMajorMin);
  }
}

void find_calls(void* library, Ucx& ucx) {
  find(library, "ucp_tag_send_nbx", ucx.tag_send_nbx);
  find(library, "ucp_tag_send_sync_nbx", ucx.tag_send_sync_nbx);
  find(library, "ucp_tag_recv_nbx", ucx.tag_recv_nbx);
  find(library, "ucp_get_nbx", ucx.get_nbx);
  find(library, "ucp_dt_create_generic", ucx.dt_create_generic);
  find(library, "ucp_mem_map", ucx.mem_map);
  find(library, "ucp_mem_unmap", ucx.mem_unmap);
  find(library, "ucp_rkey_pack", ucx.rkey_pack);
  find(library, "ucp_rkey_buffer_release", ucx.rkey_buffer_release);
  find(library, "ucp_ep_rkey_unpack", ucx.ep_rkey_unpack);
  find(library, "ucp_rkey_destroy", ucx.rkey_destroy);
  find(library, "ucp_request_check_status", ucx.request_check_status);
  find(library, "ucp_request_cancel", ucx.request_cancel);
  find(library, "ucp_request_free", ucx.request_free);
}

Ucx open() {
  for (const auto& setting : kSettings) setenv(setting.name, setting.value, 0);
  // never closed: its threads and its exit handlers stay
  void* library = dlopen(kName, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* text = dlerror();
    fail(CKPT_ERR_UNSUPPORTED, "UCX cannot be opened: %s", text == nullptr ? kName : text);
  }
  require_version(library);
  Ucx ucx{};
  find(library, "ucp_get_version_string", ucx.get_version_string);
  find(library, "ucs_status_string", ucx.status_string);
  find(library, "ucp_config_read", ucx.config_read);
  find(library, "ucp_config_modify", ucx.config_modify);
  find(library, "ucp_config_release", ucx.config_release);
  find(library, "ucp_init_version", ucx.init_version);
  find(library, "ucp_cleanup", ucx.cleanup);
  find(library, "ucp_worker_create", ucx.worker_create);
  find(library, "ucp_worker_destroy", ucx.worker_destroy);
  find(library, "ucp_worker_get_address", ucx.worker_get_address);
  find(library, "ucp_worker_release_address", ucx.worker_release_address);
  find(library, "ucp_worker_progress", ucx.worker_progress);
  find(library, "ucp_worker_get_efd", ucx.worker_get_efd);
  find(library, "ucp_worker_arm", ucx.worker_arm);
  find(library, "ucp_ep_create", ucx.ep_create);
  find(library, "ucp_ep_close_nbx", ucx.ep_close_nbx);
  find(library, "ucp_ep_print_info", ucx.ep_print_info);
  find_calls(library, ucx);
  return ucx;
}

ckpt_status status_of_failure(Ucx::Status status) {
  switch (status) {
    case Ucx::kNoMemory: return CKPT_ERR_MEMORY;
    case Ucx::kCanceled: return CKPT_ERR_ABORTED;
    case Ucx::kUnreachable:
    case Ucx::kUnsupported: return CKPT_ERR_UNSUPPORTED;
    default: return CKPT_ERR_IO;
  }
}

}  // namespace

const Ucx& Ucx::get() {
  static std::mutex mutex;
  static const Ucx* opened = nullptr;
  std::lock_guard lock(mutex);
  if (opened == nullptr) opened = new Ucx(open());
  return *opened;
}

Error Ucx::error_of(Status status, const char* what) const {
  return Error(status_of_failure(status),
               format_text("UCX: %s: %s (%d)", what, status_string(status), status));
}

}  // namespace ckpt
