/**
 * Makes the README's section of figures from what was recorded in `docs/bench`: documents of `bun run bench --json`, and the picture
 * that `scripts/trace-picture.ts` draws.
 *
 *     bun scripts/bench-results.ts            # writes the section
 *     bun scripts/bench-results.ts --check    # status 1 when it is not what the documents give
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { boundText, shown } from '../packages/bench/src/claims.ts'
import { percentOfLimit } from '../packages/bench/src/row.ts'
import {
  parseRecorded,
  type RecordedDocument,
  type RecordedRow,
} from '../packages/bench/src/recorded.ts'

const ROOT = join(import.meta.dir, '..')
const README = 'README.md'
const FOLDER = 'docs/bench'
const PICTURE = 'update-trace.svg'
const BEGIN = '<!-- bench:begin -->'
const END = '<!-- bench:end -->'
const REGENERATE = 'bun scripts/bench-results.ts'
/** What most readers came for; the stages follow. */
const FIRST_BENCHES = ['update', 'peers', 'fresh']
/** Of a table; rows that something is asked of stay also when they are more. */
const LINES_MAX = 25

/** A document and where it lies, relative to the README. */
export interface Recorded {
  readonly path: string
  readonly document: RecordedDocument
}

/** The newest first. @throws Error that names the file which is no document of the benches */
export function readRecorded(root: string): Recorded[] {
  const folder = join(root, FOLDER)
  if (!existsSync(folder)) return []
  const names = readdirSync(folder).filter((name) => name.endsWith('.json'))
  return names
    .map((name) => {
      const path = `${FOLDER}/${name}`
      return { path, document: parseRecorded(path, readFileSync(join(root, path), 'utf8')) }
    })
    .sort(
      (a, b) => compare(b.document.header.date, a.document.header.date) || compare(a.path, b.path),
    )
}

/** Everything between the markers. */
export function sectionOf(recorded: readonly Recorded[], picture: string | null): string {
  const parts = recorded.map(({ path, document }) =>
    [captionOf(path, document), tableOf(path, document)].join('\n\n'),
  )
  if (parts.length === 0) parts.push('Nothing was recorded yet.')
  if (picture !== null) {
    parts.push(
      `One update, and when each stage of each rank had work:\n\n![timeline of an update](${picture})`,
    )
  }
  return parts.join('\n\n')
}

/** A document with another section. @throws Error when it has not each marker once, in their order */
export function replaceSection(readme: string, section: string, name = README): string {
  const [before, rest, ...moreBegins] = readme.split(BEGIN)
  const [, after, ...moreEnds] = rest?.split(END) ?? []
  if (before === undefined || after === undefined || moreBegins.length + moreEnds.length > 0) {
    throw new Error(`${name} must have ${BEGIN} and then ${END}, each once`)
  }
  return `${before}${BEGIN}\n${section}\n${END}${after}`
}

function captionOf(path: string, { header, compared, wrong, error }: RecordedDocument): string {
  const counts = new Map<string, number>()
  for (const { name } of header.devices) counts.set(name, (counts.get(name) ?? 0) + 1)
  const devices = [...counts].map(([name, count]) => (count === 1 ? name : `${count} x ${name}`))
  const versions = [
    `ckpt ${header.ckpt}`,
    `Bun ${header.bun}`,
    ...(header.driver === null ? [] : [`driver ${header.driver}`]),
    ...(header.cuda === null ? [] : [`CUDA ${header.cuda}`]),
    header.os,
  ]
  const ended = error === null ? '' : ` The run ended early: ${cell(error.message)}.`
  return (
    `**${cell(devices.join(', '))}**, ${header.date}: ${cell(versions.join(', '))}; ` +
    `\`${header.command}\` ([all rows](${path})). Of ${compared} compared ranges ${wrong} were wrong.${ended}`
  )
}

function tableOf(path: string, { rows }: RecordedDocument): string {
  const worthy = worthTelling(rows)
  const told = fitting(worthy)
  if (told.length === 0) return 'No row has a limit or a bound.'
  const left = worthy.length - told.length
  return [
    '| what | GB/s | of limit | measured | wanted | holds |',
    '|---|--:|--:|--:|--:|---|',
    ...told.flatMap(linesOf),
    ...(left === 0
      ? []
      : [
          '',
          `Rows with a limit that are left out here, because the table would be long: ${left}.`,
        ]),
  ].join('\n')
}

/**
 * Rows that something is asked of or that have a limit. Of a stage's rows that nothing is asked of and whose names differ in numbers
 * only, the last one: the benches go from small sizes, which measure latency, to large ones.
 */
function worthTelling(rows: readonly RecordedRow[]): RecordedRow[] {
  const isFirst = ({ bench }: RecordedRow) => FIRST_BENCHES.includes(bench)
  const kindOf = (row: RecordedRow) =>
    `${row.bench} ${row.case.replace(/\d+( ([KMG]i)?B\b)?/g, '')}`
  const isFree = (row: RecordedRow) => row.claims.length === 0 && row.limit_gb_per_s !== null
  const last = new Map(rows.filter(isFree).map((row) => [kindOf(row), row]))
  const told = rows.filter((row) => {
    if (row.claims.length > 0) return true
    return isFree(row) && (isFirst(row) || last.get(kindOf(row)) === row)
  })
  const first = FIRST_BENCHES.flatMap((name) => told.filter(({ bench }) => bench === name))
  return [...first, ...told.filter((row) => !isFirst(row))]
}

/** Without the last rows that nothing is asked of, until a reader sees the table at a glance. */
function fitting(rows: readonly RecordedRow[]): RecordedRow[] {
  const linesOfAll = rows.reduce((sum, row) => sum + linesOf(row).length, 0)
  const free = rows.filter(({ claims }) => claims.length === 0)
  const leave = Math.min(free.length, Math.max(0, linesOfAll - LINES_MAX))
  const left = new Set(free.slice(free.length - leave))
  return rows.filter((row) => !left.has(row))
}

/** A line for the row, and one for each figure that is asked for; where it is one, both are one. */
function linesOf(row: RecordedRow): string[] {
  const { bench, p50_s, gb_per_s, claims } = row
  const rate = gb_per_s === null ? '' : gb_per_s.toFixed(2)
  const percent = percentOfLimit(row)
  const share = percent === null ? '' : `${percent.toFixed(1)} %`
  const asked = claims.map((claim) => {
    const { what, figure, unit, holds } = claim
    const measured = figure === null ? 'unknown' : `${shown(figure)} ${unit}`
    return { what, rest: [measured, boundText(claim), holds ? 'yes' : '**no**'] }
  })
  const [only, ...more] = asked
  if (only !== undefined && more.length === 0) return [line(only.what, rate, share, ...only.rest)]
  return [
    line(`${bench} ${row.case}`, rate, share, p50_s === null ? '' : duration(p50_s), '', ''),
    ...asked.map(({ what, rest }) => line(what, '', '', ...rest)),
  ]
}

function line(...cells: readonly string[]): string {
  return `|${cells.map((text) => (text === '' ? ' ' : ` ${cell(text)} `)).join('|')}|`
}

/** Text that Markdown shows as it is. */
function cell(text: string): string {
  return text.replace(/\s+/g, ' ').replace(/[|<>]/g, (sign) => `\\${sign}`)
}

function duration(seconds: number): string {
  if (seconds >= 0.1) return `${shown(seconds)} s`
  return seconds >= 1e-4 ? `${shown(seconds * 1e3)} ms` : `${shown(seconds * 1e6)} us`
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0
}

/** Status 0; 1 with `check` when the README is not what is recorded, or when something recorded cannot be read. */
export function run(root: string, check: boolean): { status: number; message: string } {
  try {
    const recorded = readRecorded(root)
    const picture = `${FOLDER}/${PICTURE}`
    const section = sectionOf(recorded, existsSync(join(root, picture)) ? picture : null)
    const readme = readFileSync(join(root, README), 'utf8')
    const wanted = replaceSection(readme, section)
    if (wanted === readme) return { status: 0, message: `${README} has what ${FOLDER} has` }
    if (check) {
      return { status: 1, message: `${README} is not what ${FOLDER} gives: run \`${REGENERATE}\`` }
    }
    writeFileSync(join(root, README), wanted)
    return { status: 0, message: `${README} was written from ${recorded.length} documents` }
  } catch (error) {
    return { status: 1, message: (error as Error).message }
  }
}

if (import.meta.main) {
  const args = process.argv.slice(2)
  if (args.some((arg) => arg !== '--check')) {
    process.stderr.write(`usage: ${REGENERATE} [--check]\n`)
    process.exit(2)
  }
  const { status, message } = run(ROOT, args.length > 0)
  process[status === 0 ? 'stdout' : 'stderr'].write(`${message}\n`)
  process.exit(status)
}
