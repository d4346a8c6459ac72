// What ucx-api.h says of UCX's binary interface, against UCX's headers where there are some, and
// that the library can be opened.
#include "common/ucx-api.h"

#include "test.h"

#if __has_include(<ucp/api/ucp.h>)
#include <ucp/api/ucp.h>

using ckpt::Ucx;

static_assert(sizeof(ucs_status_t) == sizeof(Ucx::Status));
static_assert(UCS_OK == Ucx::kOk && UCS_ERR_NO_MEMORY == Ucx::kNoMemory);
static_assert(UCS_ERR_UNREACHABLE == Ucx::kUnreachable && UCS_ERR_BUSY == Ucx::kBusy);
static_assert(UCS_ERR_MESSAGE_TRUNCATED == Ucx::kTruncated && UCS_ERR_CANCELED == Ucx::kCanceled);
static_assert(UCS_ERR_UNSUPPORTED == Ucx::kUnsupported && UCS_ERR_LAST == Ucx::kStatusLast);

#define SAME_PLACE(ours, field, theirs, of_theirs) \
  static_assert(offsetof(ours, field) == offsetof(theirs, of_theirs))

static_assert(sizeof(Ucx::Params) <= sizeof(ucp_params_t));
SAME_PLACE(Ucx::Params, features, ucp_params_t, features);
SAME_PLACE(Ucx::Params, request_size, ucp_params_t, request_size);
SAME_PLACE(Ucx::Params, mt_workers_shared, ucp_params_t, mt_workers_shared);
SAME_PLACE(Ucx::Params, name, ucp_params_t, name);
static_assert(UCP_PARAM_FIELD_FEATURES == Ucx::Params::kFeatures);
static_assert(UCP_PARAM_FIELD_NAME == Ucx::Params::kName);
static_assert(UCP_FEATURE_TAG == Ucx::Params::kFeatureTag);
static_assert(UCP_FEATURE_RMA == Ucx::Params::kFeatureRma);
static_assert(UCP_FEATURE_WAKEUP == Ucx::Params::kFeatureWakeup);

SAME_PLACE(Ucx::WorkerParams, thread_mode, ucp_worker_params_t, thread_mode);
SAME_PLACE(Ucx::WorkerParams, cpu_mask, ucp_worker_params_t, cpu_mask);
SAME_PLACE(Ucx::WorkerParams, events, ucp_worker_params_t, events);
SAME_PLACE(Ucx::WorkerParams, event_fd, ucp_worker_params_t, event_fd);
SAME_PLACE(Ucx::WorkerParams, flags, ucp_worker_params_t, flags);
static_assert(UCP_WORKER_PARAM_FIELD_THREAD_MODE == Ucx::WorkerParams::kThreadMode);
static_assert(UCP_WORKER_PARAM_FIELD_FLAGS == Ucx::WorkerParams::kFlags);
static_assert(UCS_THREAD_MODE_SERIALIZED == Ucx::WorkerParams::kSerialized);
static_assert(UCP_WORKER_FLAG_IGNORE_REQUEST_LEAK == Ucx::WorkerParams::kIgnoreRequestLeak);

SAME_PLACE(Ucx::EndpointParams, address, ucp_ep_params_t, address);
SAME_PLACE(Ucx::EndpointParams, error_mode, ucp_ep_params_t, err_mode);
SAME_PLACE(Ucx::EndpointParams, error_handler, ucp_ep_params_t, err_handler);
SAME_PLACE(Ucx::EndpointParams, flags, ucp_ep_params_t, flags);
SAME_PLACE(Ucx::EndpointParams, socket_address, ucp_ep_params_t, sockaddr);
SAME_PLACE(Ucx::EndpointParams, name, ucp_ep_params_t, name);
SAME_PLACE(Ucx::ErrorHandler, argument, ucp_err_handler_t, arg);
static_assert(sizeof(Ucx::SocketAddress) == sizeof(ucs_sock_addr_t));
static_assert(UCP_EP_PARAM_FIELD_REMOTE_ADDRESS == Ucx::EndpointParams::kRemoteAddress);
static_assert(UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE == Ucx::EndpointParams::kErrorMode);
static_assert(UCP_EP_PARAM_FIELD_ERR_HANDLER == Ucx::EndpointParams::kErrorHandler);
static_assert(UCP_ERR_HANDLING_MODE_PEER == Ucx::EndpointParams::kErrorModePeer);

SAME_PLACE(Ucx::TagInfo, sender_tag, ucp_tag_recv_info_t, sender_tag);
SAME_PLACE(Ucx::TagInfo, length, ucp_tag_recv_info_t, length);

SAME_PLACE(Ucx::RequestParams, mask, ucp_request_param_t, op_attr_mask);
SAME_PLACE(Ucx::RequestParams, flags, ucp_request_param_t, flags);
SAME_PLACE(Ucx::RequestParams, request, ucp_request_param_t, request);
SAME_PLACE(Ucx::RequestParams, sent, ucp_request_param_t, cb);
SAME_PLACE(Ucx::RequestParams, datatype, ucp_request_param_t, datatype);
SAME_PLACE(Ucx::RequestParams, user_data, ucp_request_param_t, user_data);
SAME_PLACE(Ucx::RequestParams, memory_type, ucp_request_param_t, memory_type);
static_assert(UCP_OP_ATTR_FIELD_CALLBACK == Ucx::RequestParams::kCallback);
static_assert(UCP_OP_ATTR_FIELD_USER_DATA == Ucx::RequestParams::kUserData);
static_assert(UCP_OP_ATTR_FIELD_DATATYPE == Ucx::RequestParams::kDatatype);
static_assert(UCP_OP_ATTR_FIELD_FLAGS == Ucx::RequestParams::kFlags);
static_assert(UCP_OP_ATTR_FIELD_MEMORY_TYPE == Ucx::RequestParams::kMemoryType);
static_assert(UCP_OP_ATTR_FLAG_NO_IMM_CMPL == Ucx::RequestParams::kNotAtOnce);
static_assert(UCP_EP_CLOSE_FLAG_FORCE == Ucx::RequestParams::kCloseForce);
static_assert(UCS_MEMORY_TYPE_HOST == Ucx::RequestParams::kHostMemory);
#if UCP_API_MAJOR > 1 || UCP_API_MINOR > 12
SAME_PLACE(Ucx::RequestParams, memory, ucp_request_param_t, memh);
static_assert(UCP_OP_ATTR_FIELD_MEMH == Ucx::RequestParams::kMemory);
#endif

static_assert(sizeof(Ucx::Unpacking) == sizeof(ucp_generic_dt_ops_t));
SAME_PLACE(Ucx::Unpacking, start_unpack, ucp_generic_dt_ops_t, start_unpack);
SAME_PLACE(Ucx::Unpacking, packed_bytes, ucp_generic_dt_ops_t, packed_size);
SAME_PLACE(Ucx::Unpacking, unpack, ucp_generic_dt_ops_t, unpack);
SAME_PLACE(Ucx::Unpacking, finish, ucp_generic_dt_ops_t, finish);

SAME_PLACE(Ucx::MapParams, address, ucp_mem_map_params_t, address);
SAME_PLACE(Ucx::MapParams, length, ucp_mem_map_params_t, length);
SAME_PLACE(Ucx::MapParams, flags, ucp_mem_map_params_t, flags);
SAME_PLACE(Ucx::MapParams, protection, ucp_mem_map_params_t, prot);
SAME_PLACE(Ucx::MapParams, memory_type, ucp_mem_map_params_t, memory_type);
static_assert(UCP_MEM_MAP_PARAM_FIELD_ADDRESS == Ucx::MapParams::kAddress);
static_assert(UCP_MEM_MAP_PARAM_FIELD_LENGTH == Ucx::MapParams::kLength);
static_assert(UCP_MEM_MAP_PARAM_FIELD_PROT == Ucx::MapParams::kProtection);
static_assert(UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE == Ucx::MapParams::kMemoryType);
static_assert(UCP_MEM_MAP_PROT_LOCAL_READ == Ucx::MapParams::kLocalRead);
static_assert(UCP_MEM_MAP_PROT_LOCAL_WRITE == Ucx::MapParams::kLocalWrite);
static_assert(UCP_MEM_MAP_PROT_REMOTE_READ == Ucx::MapParams::kRemoteRead);
#endif

TEST("UCX is opened, or the reason why it cannot be is said") {
  try {
    CHECK(std::string(ckpt::Ucx::get().get_version_string()).rfind("1.", 0) == 0);
  } catch (const ckpt::Error& error) {
    CHECK_EQ(error.status(), CKPT_ERR_UNSUPPORTED);
    CHECK(error.text().find("UCX") != std::string::npos);
  }
}
