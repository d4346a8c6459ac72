export { type DeviceSelection, selectDevices } from './devices.ts'
export {
  BUFFER_SHARED,
  HANDLE_BYTES,
  SIGNAL_ABORT,
  SIGNAL_HTTP,
  SIGNAL_USER,
  STATUS_ERR_ABORTED,
  STATUS_ERR_DEVICE_LOST,
  STATUS_ERR_HANDLE,
  STATUS_ERR_STATE,
  STATUS_ERR_TIMEOUT,
} from './generated.ts'
export { openLibrary } from './library.ts'
export { NativeError } from './native-error.ts'
export { numaNodeCount } from './numa.ts'
export type { P2p, P2pTransport } from './p2p.ts'
export { libraryDir } from './symbols.ts'
export type * from './types.ts'
export * from './zmq.ts'
export { CURVE_KEY_BYTES, curvePublicKey, z85Decode, z85Encode } from './zmq-keys.ts'
