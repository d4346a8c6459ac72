import { CkptError } from '../api/errors.ts'

/** NCCL takes no more, nor does checkpoint-engine. */
const DEVICES_MAX = 32

/** Variables of the environment. */
export interface RdmaSettings {
  /** `PS_P2P_STORE_RDMA_DEVICES`, checkpoint-engine's: names with commas between them. */
  readonly devices: string | undefined
  /** `NCCL_IB_HCA`, as in NCCL's documentation. */
  readonly hca: string | undefined
}

export interface RdmaChoice {
  readonly devices: readonly string[]
  /** Which setting has decided; null: all that there are, perhaps because a setting names none of them. */
  readonly by: 'PS_P2P_STORE_RDMA_DEVICES' | 'NCCL_IB_HCA' | null
}

/**
 * The RDMA devices of a host that P2P reads go over, chosen as checkpoint-engine 0.4.2 does (`device_utils.py`): what
 * `PS_P2P_STORE_RDMA_DEVICES` names, whether or not it is there; else what `NCCL_IB_HCA` leaves of those that are there; else all.
 *
 * @param available names such as `mlx5_0`, in their order
 */
export function chooseRdmaDevices(
  available: readonly string[],
  { devices, hca }: RdmaSettings,
): RdmaChoice {
  if (devices !== undefined && devices !== '') {
    return { devices: devices.split(','), by: 'PS_P2P_STORE_RDMA_DEVICES' }
  }
  const filter = hca?.trim() ?? ''
  if (filter === '') return { devices: available.slice(0, DEVICES_MAX), by: null }
  const chosen = filterByHca(available, filter)
  if (chosen.length === 0) return { devices: available, by: null }
  return { devices: chosen.slice(0, DEVICES_MAX), by: 'NCCL_IB_HCA' }
}

/** `^` before all: those that are not named; `=` after it: whole names, else what names begin with. */
function filterByHca(available: readonly string[], hca: string): string[] {
  const [, not, whole, list] = /^(\^?)(=?)([^]*)$/.exec(hca) as string[]
  const names = (list as string)
    .split(',')
    .map((one) => one.trim())
    .filter((one) => one !== '')
    // a port does not matter: a device is used as a whole
    .map((one) => (one.split(':')[0] as string).trim())
  const isNamed = (device: string) =>
    names.some((name) => {
      if (whole !== '' || available.includes(name)) return device === name
      return device.startsWith(name)
    })
  if (not !== '') return available.filter((device) => !isNamed(device))
  return available.filter(isNamed).toSorted()
}

/**
 * Which of the chosen devices a rank uses: they are split evenly, so that several neighbouring ranks share one, or a rank has several.
 *
 * @param localRank of the host's `localRanks`, as many as it has GPUs
 * @throws CkptError `bad_request`: there are none, or they do not divide
 */
export function rdmaDevicesOf(
  devices: readonly string[],
  localRank: number,
  localRanks: number,
): readonly string[] {
  const { length } = devices
  if (length === 0) throw new CkptError('bad_request', 'there is no RDMA device')
  const share = Math.max(length, localRanks) / Math.min(length, localRanks)
  if (!Number.isInteger(share)) {
    const message = `${length} RDMA devices (${devices.join(', ')}) do not divide among ${localRanks} ranks: name others with NCCL_IB_HCA or PS_P2P_STORE_RDMA_DEVICES`
    throw new CkptError('bad_request', message)
  }
  if (length <= localRanks) return [devices[Math.floor(localRank / share)] as string]
  return devices.slice(localRank * share, (localRank + 1) * share)
}
