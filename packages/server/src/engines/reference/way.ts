/** How the weights come: in lists through the daemon's ring, or copied by the daemon into the parameters. */
export type UpdateWay = 'ring' | 'direct'
