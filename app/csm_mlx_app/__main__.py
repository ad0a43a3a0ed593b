from csm_mlx_app.cli import main

main()
