import { readFileSync } from 'node:fs'
import { availableParallelism, cpus, release } from 'node:os'
import { type Library, numaNodeCount, type RankInfo } from '@ckpt/cuda'

/** A device's PCIe link: generation and lanes, at present (a link saves power while nothing moves) and at most. */
export interface PcieLink {
  readonly generation: number | null
  readonly generation_max: number | null
  readonly width: number | null
  readonly width_max: number | null
}

export interface BenchDevice {
  readonly name: string
  readonly uuid: string
  /** PCI address; empty on the host library. */
  readonly pci: string
  /** Null: unknown, or the machine has one node and does not say. */
  readonly numa_node: number | null
  /** Null: `nvidia-smi` is not there or does not know the device. */
  readonly pcie: PcieLink | null
}

export interface Machine {
  readonly cores: number
  readonly cpu: string
  /** Null where the kernel does not say. */
  readonly numa_nodes: number | null
  /** `Linux 6.8.0-60-generic, Ubuntu 24.04.2 LTS`. */
  readonly os: string
  /** Of the GPU, and the newest CUDA version that it serves; null on the host library or without `nvidia-smi`. */
  readonly driver: string | null
  readonly cuda: string | null
  readonly devices: readonly BenchDevice[]
}

const SMI_MS_MAX = 10_000
const SMI_FIELDS = [
  'uuid',
  'driver_version',
  'pcie.link.gen.current',
  'pcie.link.gen.max',
  'pcie.link.width.current',
  'pcie.link.width.max',
] as const
/** `--version` came with driver 530; the table of a plain call has the version too. */
const SMI_VERSION_CALLS = [['--version'], []] as const

/** What was measured on. What cannot be found out is null; nothing of it is an error. */
export function machineOf(library: Library, ranks: readonly RankInfo[]): Machine {
  const smi = library.kind === 'cuda' ? askSmi() : { driver: null, cuda: null, links: new Map() }
  return {
    cores: availableParallelism(),
    cpu: cpus()[0]?.model ?? 'unknown',
    numa_nodes: numaNodeCount(),
    os: ['Linux ' + release(), distribution()].filter((part) => part !== null).join(', '),
    driver: smi.driver,
    cuda: smi.cuda,
    devices: ranks.map(({ device }) => {
      const { name, uuid, pci, numaNode } = library.deviceDescribe(device)
      const numa_node = numaNode < 0 ? null : numaNode
      return { name, uuid, pci, numa_node, pcie: smi.links.get(uuid) ?? null }
    }),
  }
}

function askSmi(): {
  driver: string | null
  cuda: string | null
  links: ReadonlyMap<string, PcieLink>
} {
  const csv = smiText([`--query-gpu=${SMI_FIELDS.join(',')}`, '--format=csv,noheader,nounits'])
  const links = new Map<string, PcieLink>()
  let driver: string | null = null
  for (const line of csv.split('\n')) {
    const [uuid = '', version, ...link] = line.split(',').map((word) => word.trim())
    if (link.length !== 4) continue
    driver = version ?? null
    const [generation = null, generation_max = null, width = null, width_max = null] =
      link.map(wholeNumber)
    links.set(uuid, { generation, generation_max, width, width_max })
  }
  return { driver, cuda: driver === null ? null : cudaVersion(), links }
}

function cudaVersion(): string | null {
  for (const args of SMI_VERSION_CALLS) {
    const found = /CUDA[A-Za-z ]* Version\s*:\s*(\d+(?:\.\d+)*)/i.exec(smiText(args))
    if (found !== null) return found[1] ?? null
  }
  return null
}

/** Empty when it is not there, fails or takes too long. */
function smiText(args: readonly string[]): string {
  try {
    const { stdout, success } = Bun.spawnSync(['nvidia-smi', ...args], {
      stderr: 'ignore',
      timeout: SMI_MS_MAX,
      env: process.env,
    })
    return success ? stdout.toString() : ''
  } catch {
    return ''
  }
}

/** `[N/A]` is null. */
function wholeNumber(word: string): number | null {
  return /^\d+$/.test(word) ? Number(word) : null
}

function distribution(): string | null {
  try {
    const text = readFileSync('/etc/os-release', 'utf8')
    return /^PRETTY_NAME="?([^"\n]*)/m.exec(text)?.[1] ?? null
  } catch {
    return null
  }
}
