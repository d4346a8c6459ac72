import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { chooseRdmaDevices, CkptError, naturalCompare, rdmaDevicesOf } from '@ckpt/core'
import { log } from './log.ts'
import type { NetworkDeviceInfo, RankInfo } from './types.ts'

const INFINIBAND = '/sys/class/infiniband'
/** Where a device does not tell. */
const DEFAULT_BYTES_PER_SECOND = 25e9

/**
 * Each rank with the RDMA devices that its reads of other hosts' memory go over; without any, or with some that do not divide among
 * the ranks, they go over whatever UCX finds.
 *
 * @param dir of the devices, as the kernel shows them
 * @throws CkptError `bad_request`: those that `PS_P2P_STORE_RDMA_DEVICES` names do not divide
 */
export function withNetworkDevices(
  ranks: readonly RankInfo[],
  env: Readonly<Record<string, string | undefined>> = process.env,
  dir = INFINIBAND,
): RankInfo[] {
  const available = entries(dir).toSorted(naturalCompare)
  const settings = { devices: env.PS_P2P_STORE_RDMA_DEVICES, hca: env.NCCL_IB_HCA }
  const { devices, by } = chooseRdmaDevices(available, settings)
  if (devices.length === 0) return [...ranks]
  try {
    return ranks.map((rank, local) => {
      const names = rdmaDevicesOf(devices, local, ranks.length)
      const networkDevices = names.map((name): NetworkDeviceInfo => {
        return { name, bytesPerSecond: rateOf(join(dir, name)) }
      })
      return { ...rank, networkDevices }
    })
  } catch (error) {
    // who names them for these reads wants them, and no others; NCCL's may have been named for other ranks than these
    if (by === 'PS_P2P_STORE_RDMA_DEVICES') throw error
    const { message } = CkptError.wrap(error)
    log.warn('UCX chooses the network devices: {message}', { message })
    return [...ranks]
  }
}

function entries(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch {
    return []
  }
}

/** Of its first port, such as `400 Gb/sec (4X NDR)`. */
function rateOf(device: string): number {
  try {
    const text = readFileSync(join(device, 'ports/1/rate'), 'utf8')
    const gigabits = Number(/^([\d.]+) Gb\/sec/.exec(text)?.[1])
    return gigabits > 0 ? (gigabits / 8) * 1e9 : DEFAULT_BYTES_PER_SECOND
  } catch {
    return DEFAULT_BYTES_PER_SECOND
  }
}
