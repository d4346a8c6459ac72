import { chooseRdmaDevices, CkptError, rdmaDevicesOf, type RdmaSettings } from '@ckpt/core'
import type { Check } from './check.ts'

const name = 'RDMA devices'

/**
 * Which devices reads of other hosts' memory go over, and why.
 *
 * @param available of this host
 * @param gpus of this host; 0: nothing is known of any
 */
export function rdmaCheck(
  available: readonly string[],
  settings: RdmaSettings,
  gpus: number,
): Check {
  const { devices, by } = chooseRdmaDevices(available, settings)
  if (devices.length === 0) {
    const fix = 'only needed for joining instances on other hosts, which read over TCP without'
    return { name, state: 'absent', found: 'none', fix }
  }
  const found = `${devices.join(', ')} of ${available.length}${by === null ? '' : ` (${by})`}`
  const missing = devices.filter((one) => !available.includes(one))
  if (missing.length > 0) {
    const fix = `${missing.join(', ')} ${missing.length === 1 ? 'is' : 'are'} not there: change ${by}`
    return { name, state: 'note', found, fix }
  }
  if (by === null && settings.hca?.trim()) {
    const fix = `NCCL_IB_HCA=${settings.hca} names none of them, so that all are used: correct it`
    return { name, state: 'note', found, fix }
  }
  if (gpus === 0) return { name, state: 'ok', found }
  try {
    const { length } = rdmaDevicesOf(devices, 0, gpus)
    const shared = gpus / devices.length
    const each = shared > 1 ? `one for ${shared} GPUs` : `${length} for each GPU`
    return { name, state: 'ok', found: `${found}, ${each}` }
  } catch (error) {
    return { name, state: 'note', found, fix: CkptError.wrap(error).message }
  }
}
