import type { NetworkDeviceInfo } from './types.ts'

/** As `UCX_NET_DEVICES` names them, each once: the first port of each. Empty: whatever UCX finds. */
export function ucxDevices(devices: readonly NetworkDeviceInfo[]): string {
  return [...new Set(devices.map(({ name }) => `${name}:1`))].join(',')
}
