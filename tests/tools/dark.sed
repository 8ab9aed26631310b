# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# The colors of a drawing on a dark page: make docs applies it to docs/images/*.svg.
s/#1f2328/#e6edf3/g
s/#59636e/#9198a1/g
s/#f6f8fa/#151b23/g
s/#d1d9e0/#3d444d/g
s/#0969da/#4493f8/g
s/#54aeff/#1f6feb/g
s/fill="#ffffff">$/fill="#0d1117">/
