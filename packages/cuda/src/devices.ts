import { CkptError } from '@ckpt/core/api/errors'
import { HOST_DEVICES_MAX, openLibrary } from './library.ts'
import { numaNodeCount } from './numa.ts'
import type { Library, LibraryOptions, RankInfo } from './types.ts'

/** The most ranks of one host. */
const RANKS_MAX = 1024

export interface DeviceSelection {
  readonly library: LibraryOptions
  readonly ranks: RankInfo[]
}

/**
 * Which library is used and which device each rank gets.
 *
 * `auto` takes CUDA when it loads and finds a device, else the host library; `host` has as many virtual devices as ranks
 * (default 1), `host:D` has D; `cuda` takes every GPU, `cuda:0,2` these. Rank r uses device `r mod D` of the chosen ones. Without
 * `ranks` there is one per device. Throws `bad_request` for another spec or a device that is not there.
 */
export function selectDevices(spec: string, ranks: number | null): DeviceSelection {
  if (ranks !== null && !(Number.isSafeInteger(ranks) && ranks >= 1 && ranks <= RANKS_MAX)) {
    throw new CkptError('bad_request', `the number of ranks must be 1 to ${RANKS_MAX}`)
  }
  const match = /^(auto|host|cuda)(?::([0-9]+(?:,[0-9]+)*))?$/.exec(spec)
  const numbers = match?.[2] === undefined ? null : match[2].split(',').map(Number)
  if (match?.[1] === 'host' && (numbers === null || numbers.length === 1)) {
    return selectHost(numbers?.[0] ?? null, ranks)
  }
  if (match?.[1] === 'cuda') return selectCuda(openLibrary({ kind: 'cuda' }), numbers, ranks)
  if (match?.[1] === 'auto' && numbers === null) {
    const library = openCudaIfThere()
    return library === null ? selectHost(null, ranks) : selectCuda(library, null, ranks)
  }
  throw new CkptError(
    'bad_request',
    `devices "${spec}": accepted are auto, host, host:D, cuda and cuda:I,J`,
  )
}

function openCudaIfThere(): Library | null {
  try {
    const library = openLibrary({ kind: 'cuda' })
    return library.deviceCount() > 0 ? library : null
  } catch (error) {
    if (error instanceof CkptError) return null
    throw error
  }
}

function selectHost(devices: number | null, ranks: number | null): DeviceSelection {
  const hostDevices = devices ?? Math.min(ranks ?? 1, HOST_DEVICES_MAX)
  if (hostDevices < 1 || hostDevices > HOST_DEVICES_MAX) {
    throw new CkptError('bad_request', `host:D takes 1 to ${HOST_DEVICES_MAX} devices`)
  }
  const options: LibraryOptions = { kind: 'host', hostDevices }
  const chosen = Array.from({ length: hostDevices }, (_, device) => device)
  return {
    library: options,
    ranks: assignRanks(openLibrary(options), chosen, ranks ?? hostDevices),
  }
}

function selectCuda(
  library: Library,
  numbers: readonly number[] | null,
  ranks: number | null,
): DeviceSelection {
  const count = library.deviceCount()
  if (count === 0) throw new CkptError('device_error', 'there is no CUDA device')
  const chosen = numbers ?? Array.from({ length: count }, (_, device) => device)
  const missing = chosen.find((device) => device >= count)
  if (missing !== undefined) {
    throw new CkptError('bad_request', `there is no device ${missing}: this host has ${count}`)
  }
  if (new Set(chosen).size !== chosen.length) {
    throw new CkptError('bad_request', `a device is named twice in cuda:${chosen.join(',')}`)
  }
  return {
    library: { kind: 'cuda' },
    ranks: assignRanks(library, chosen, ranks ?? chosen.length),
  }
}

function assignRanks(library: Library, devices: readonly number[], count: number): RankInfo[] {
  const infos = devices.map((device) => library.deviceDescribe(device))
  const severalNodes = (numaNodeCount() ?? 1) > 1
  return Array.from({ length: count }, (_, rank) => {
    const position = rank % devices.length
    const info = infos[position]
    const device = devices[position]
    if (info === undefined || device === undefined) throw new Error('no device for the rank')
    const shared = position + devices.length < count || rank >= devices.length
    return {
      rank,
      device,
      deviceName: info.name,
      key: shared ? `${info.uuid}#${rank}` : info.uuid,
      uuid: info.uuid,
      numaNode: severalNodes ? info.numaNode : -1,
    }
  })
}
