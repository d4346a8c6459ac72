import { claimLine } from './claims.ts'
import type { BenchDocument, BenchHeader } from './document.ts'
import type { BenchDevice } from './machine.ts'
import { percentOfLimit, type Row } from './row.ts'

const WIDTHS = {
  bench: 13,
  case: 38,
  bytes: 13,
  runs: 6,
  time: 12,
  rate: 8,
  limit: 8,
  wrong: 7,
} as const

/** Lines before the first row. */
export function tableHead(header: BenchHeader): string {
  const { ckpt, bun, library, devices, cores, cpu, numa_nodes, os, driver, cuda } = header
  return [
    `# ckpt ${ckpt}, Bun ${bun}, ${library} library, ${cores} cores (${cpu}), NUMA nodes: ${numa_nodes ?? 'unknown'}`,
    `# ${os}${library === 'cuda' ? `, driver ${driver ?? 'unknown'}, CUDA ${cuda ?? 'unknown'}` : ''}`,
    ...devices.map((device, index) => `# device ${index}: ${deviceText(device)}`),
    '# times are of one run; algbw is bytes by the median time; #wrong counts ranges that differ after a run',
    line(
      'bench',
      'case',
      'bytes',
      'runs',
      'p50 (us)',
      'p99 (us)',
      'algbw',
      'busbw',
      'of limit',
      '#wrong',
    ),
    line('', '', '', '', '', '', '(GB/s)', '(GB/s)', '(%)', ''),
  ].join('\n')
}

/** `NVIDIA H100 80GB HBM3, 0000:4e:00.0, NUMA node 0, PCIe gen 5 (of 5) x16 (of 16)`: what is known. */
function deviceText({ name, pci, numa_node, pcie }: BenchDevice): string {
  const words = [name]
  if (pci !== '') words.push(pci)
  if (numa_node !== null) words.push(`NUMA node ${numa_node}`)
  if (pcie !== null) {
    const { generation, generation_max, width, width_max } = pcie
    const [gen, genMost, lanes, lanesMost] = [generation, generation_max, width, width_max].map(
      (number) => number ?? '?',
    )
    words.push(`PCIe gen ${gen} (of ${genMost}) x${lanes} (of ${lanesMost})`)
  }
  return words.join(', ')
}

export function tableRow(row: Row): string {
  const figures = rowLine(row)
  if (row.copies !== null) {
    const { single, rows, pieces, gathered } = row.copies
    const counts = `${single} copies and ${rows} of rows, ${pieces} pieces gathered into ${gathered}`
    return `${figures}\n#   ${counts}`
  }
  if (row.device_bytes === null || row.host_bytes === null) return figures
  const [device, host] = [row.device_bytes, row.host_bytes].map((bytes) => (bytes / 1e9).toFixed(2))
  return `${figures}\n#   device memory +${device} GB, memory of the daemon ${host} GB`
}

function rowLine(row: Row): string {
  return line(
    row.bench,
    row.case,
    row.bytes === null ? '-' : String(row.bytes),
    String(row.runs),
    micros(row.p50_s),
    micros(row.p99_s),
    rate(row.gb_per_s),
    rate(row.bus_gb_per_s),
    ofLimit(row),
    String(row.wrong),
  )
}

/** The last lines. */
export function verdict({
  ok,
  rows,
  notes,
  compared,
  wrong,
  live_objects,
  seconds,
  error,
}: BenchDocument): string {
  const ranges = `${wrong} of ${compared} ranges wrong`
  const left = live_objects === 0 ? 'nothing left' : `${live_objects} native objects left`
  const ended = error === null ? '' : `\n# ended early: ${error.code}: ${error.message}`
  const claims = rows.flatMap((row) => row.claims.map((claim) => `# ${claimLine(claim)}\n`))
  const told = notes.map((note) => `# note: ${note}\n`)
  return `${told.join('')}${claims.join('')}# ${ok ? 'ok' : 'FAILED'}: ${ranges}, ${left}, ${seconds.toFixed(1)} s${ended}`
}

function line(
  bench: string,
  name: string,
  bytes: string,
  runs: string,
  p50: string,
  p99: string,
  algbw: string,
  busbw: string,
  limit: string,
  wrong: string,
): string {
  return [
    bench.padEnd(WIDTHS.bench),
    name.padEnd(WIDTHS.case),
    bytes.padStart(WIDTHS.bytes),
    runs.padStart(WIDTHS.runs),
    p50.padStart(WIDTHS.time),
    p99.padStart(WIDTHS.time),
    algbw.padStart(WIDTHS.rate),
    busbw.padStart(WIDTHS.rate),
    limit.padStart(WIDTHS.limit),
    wrong.padStart(WIDTHS.wrong),
  ]
    .join(' ')
    .trimEnd()
}

function micros(seconds: number): string {
  return (seconds * 1e6).toFixed(1)
}

function rate(gbPerSecond: number | null): string {
  return gbPerSecond === null ? '-' : gbPerSecond.toFixed(2)
}

function ofLimit(row: Row): string {
  return percentOfLimit(row)?.toFixed(1) ?? '-'
}
