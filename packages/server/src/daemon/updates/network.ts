import type { NetworkDevice, NetworkRank, PlanNetwork } from '@ckpt/core'
import type { RemoteBuffers } from '../memory/protocol.ts'
import type { RankHandle } from '../rank/handle.ts'
import type { HeldVersion, NetworkDeviceInfo, VersionLease } from '../types.ts'

/** Of a host whose ranks were told no device: one, as fast as any other such host's. */
const UNKNOWN: NetworkDeviceInfo = { name: '', bytesPerSecond: 12.5e9 }

/**
 * Who reads over which network devices, where ranks read what hosts without a rank in the update hold; null: none does.
 *
 * @param links of the update
 * @param all ranks of all daemons: owners have devices too
 */
export function networkOf(
  { ownerNodes, ownerRanks }: Pick<HeldVersion, 'ownerNodes' | 'ownerRanks'>,
  links: readonly RankHandle[],
  all: readonly RankHandle[],
): PlanNetwork | null {
  const here = new Set(links.map(({ node }) => node))
  if (ownerNodes.every((node) => here.has(node))) return null
  const devices = new Devices()
  const receivers = links.map(({ node, rank }) => ({
    rank: rank.rank,
    host: node,
    devices: devices.of(node, rank.networkDevices),
  }))
  const owners = ownerNodes.map((host, owner): NetworkRank => {
    const ranks = ownerRanks[owner] ?? []
    const own = all.filter(({ node, rank }) => node === host && ranks.includes(rank.rank))
    const [first = -1] = ranks
    // whichever of its ranks owns it: any of their devices reads its host's memory
    const told = own.flatMap(({ rank }) => rank.networkDevices ?? [])
    return { rank: first, host, devices: devices.of(host, told) }
  })
  return { devices: devices.all, owners, receivers }
}

/**
 * Bytes a second that the ranks of a host can read of other hosts' memory.
 *
 * @param most of a host whose ranks were told no device, as broadcasts have shown
 */
export function networkRateOf(node: number, all: readonly RankHandle[], most: number): number {
  const told = all
    .filter((link) => link.node === node)
    .flatMap(({ rank }) => rank.networkDevices ?? [])
  const byName = new Map(told.map((device) => [device.name, device.bytesPerSecond]))
  const sum = [...byName.values()].reduce((total, rate) => total + rate, 0)
  return sum > 0 ? sum : Math.min(UNKNOWN.bytesPerSecond, most)
}

/** How many hosts hold it or have one of these ranks. */
export function hostsOf(
  { ownerNodes }: Pick<HeldVersion, 'ownerNodes'>,
  links: readonly RankHandle[],
): number {
  return new Set([...ownerNodes, ...links.map(({ node }) => node)]).size
}

/**
 * Per owner: how these ranks, those of an update, read its memory over the network; null: one of them is on its host.
 *
 * @throws CkptError as `VersionLease.serve`
 */
export async function remoteMemory(
  { version: { ownerNodes }, complete, serve }: VersionLease,
  links: readonly RankHandle[],
): Promise<(RemoteBuffers | null)[]> {
  const here = new Set(links.map(({ node }) => node))
  const away = new Set(ownerNodes.filter((node) => !here.has(node)))
  if (away.size === 0) return ownerNodes.map(() => null)
  // who reads over the network does not see how far a file has been read
  await complete
  return serve(away)
}

/** What of a checkpoint's owners the ranks of a node have in their daemon's own memory, and how they read the rest. */
export type MemoryAt = (node: number) => {
  /** Per owner: another daemon has its bytes. */
  readonly away: readonly boolean[]
  /** Per owner: null: this daemon has it, or nothing is to be read now. */
  readonly remotes: readonly (RemoteBuffers | null)[]
}

/** Where nothing is read. */
export function memoryAway({ ownerNodes }: Pick<HeldVersion, 'ownerNodes'>): MemoryAt {
  return (node) => ({
    away: ownerNodes.map((owner) => owner !== node),
    remotes: ownerNodes.map(() => null),
  })
}

/**
 * Where each rank reads what its own daemon does not have.
 *
 * @throws CkptError as `VersionLease.serve`
 */
export async function memoryReadable(
  { version, complete, serve }: VersionLease,
  links: readonly RankHandle[],
): Promise<MemoryAt> {
  const { ownerNodes } = version
  const away = new Set(ownerNodes.filter((owner) => links.some(({ node }) => node !== owner)))
  const at = memoryAway(version)
  if (away.size === 0) return at
  // who reads over the network does not see how far a file has been read
  await complete
  const served = await serve(away)
  return (node) => {
    const { away } = at(node)
    return { away, remotes: served.map((remote, owner) => (away[owner] ? remote : null)) }
  }
}

/** The devices of all hosts, each once. */
class Devices {
  readonly all: NetworkDevice[] = []
  readonly #indices = new Map<string, number>()

  of(host: number, told: readonly NetworkDeviceInfo[] = []): number[] {
    const own = told.length === 0 ? [UNKNOWN] : told
    return [...new Set(own.map((device) => this.#indexOf(host, device)))]
  }

  #indexOf(host: number, { name, bytesPerSecond }: NetworkDeviceInfo): number {
    const key = `${host} ${name}`
    const known = this.#indices.get(key)
    if (known !== undefined) return known
    this.all.push({ bytesPerSecond })
    this.#indices.set(key, this.all.length - 1)
    return this.all.length - 1
  }
}
